//! An image without a registry: busybox, in the layout of the Open Container Initiative (image-spec, `image-layout.md`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::node::said;

/// Its name. It is the image of the pods' first containers, too.
pub const IMAGE: &str = "loden.test/busybox:1";
/// Serves a page with these words, on port 80 of all addresses.
const SERVE: &str = "mkdir -p /www && echo \"$0\" >/www/index.html && exec httpd -f -p 80 -h /www";

/// What a container does that serves a page.
pub fn serve(words: &str) -> [&str; 4] {
    ["/bin/sh", "-c", SERVE, words]
}

/// A root directory of busybox (Debian: busybox-static).
pub fn root(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    for part in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(part)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox is installed by `cargo xtask test`");
    for name in ["sh", "sleep", "httpd", "ip", "mkdir", "cat", "nc"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    root
}

/// Writes the image's archive; gives its path.
pub fn archive(dir: &Path) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let layer = dir.join("layer.tar");
    tar(&root(dir), &layer);
    let layer = blob(&blobs, "application/vnd.oci.image.layer.v1.tar", &fs::read(layer).expect("a layer"));
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(&blobs, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let mut manifest = blob(&blobs, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1" });
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("written");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    let archive = dir.join("image.tar");
    tar(&layout, &archive);
    archive
}

fn tar(dir: &Path, to: &Path) {
    said(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(to).arg(".")).expect("tar");
}

/// Keeps a blob under its digest; gives its descriptor.
fn blob(blobs: &Path, kind: &str, bytes: &[u8]) -> Value {
    let unnamed = blobs.join("unnamed");
    fs::write(&unnamed, bytes).expect("written");
    let sum = said(Command::new("sha256sum").arg(&unnamed)).expect("sha256sum");
    let sum = sum.split(' ').next().expect("a digest");
    fs::rename(unnamed, blobs.join(sum)).expect("renamed");
    json!({ "mediaType": kind, "digest": format!("sha256:{sum}"), "size": bytes.len() })
}
