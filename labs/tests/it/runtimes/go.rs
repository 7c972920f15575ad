//! Programs of the field that are built from their Go modules, and one of this tree's that calls what they call.

use std::path::{Path, PathBuf};

/// Where `cargo xtask test` and `cargo xtask peers` put them.
pub fn peers() -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    target.join("peers")
}

/// One of those that every run of the tests builds.
pub fn program(name: &str) -> PathBuf {
    let path = peers().join("bin").join(name);
    assert!(path.exists(), "{}: `cargo xtask test` builds it", path.display());
    path
}
