//! The image of the pods, and what their containers do.

use std::path::{Path, PathBuf};

use loden_testkit::image;

/// Its name. It is the image of the pods' first containers, too.
pub const IMAGE: &str = "loden.test/busybox:1";
/// Serves a page with these words, on port 80 of all addresses.
const SERVE: &str = "mkdir -p /www && echo \"$0\" >/www/index.html && exec httpd -f -p 80 -h /www";

/// What a container does that serves a page.
pub fn serve(words: &str) -> [&str; 4] {
    ["/bin/sh", "-c", SERVE, words]
}

/// A root directory of busybox.
pub fn root(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    image::busybox(&root).expect("busybox is installed by `cargo xtask test`");
    root
}

/// Writes the image's archive; gives its path.
pub fn archive(dir: &Path) -> PathBuf {
    image::archive(dir, &root(dir), &[IMAGE]).expect("an archive")
}
