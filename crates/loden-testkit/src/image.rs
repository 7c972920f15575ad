//! Images without a registry: busybox and what a test adds to it, in the layout of the Open Container Initiative (image-spec,
//! `image-layout.md`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Makes a root directory of busybox (Debian: busybox-static).
///
/// # Errors
/// What the system said.
pub fn busybox(root: &Path) -> Result<(), String> {
    for part in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        let part = root.join(part);
        fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|error| format!("/bin/busybox: {error}"))?;
    for name in ["sh", "sleep", "httpd", "ip", "mkdir", "cat", "nc", "cp", "wget"] {
        symlink("busybox", root.join("bin").join(name)).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Packs a root directory as images of these names (`REPOSITORY:TAG`), which have its one layer in common and each its own
/// configuration; gives the archive, which is left in `dir` beside what it was made of.
///
/// # Errors
/// What the system said.
pub fn archive(dir: &Path, root: &Path, names: &[&str]) -> Result<PathBuf, String> {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|error| format!("{}: {error}", blobs.display()))?;
    let layer = dir.join("layer.tar");
    tar(root, &layer)?;
    let layer = blob(&blobs, LAYER, &read(&layer)?)?;
    let mut manifests = Vec::new();
    for name in names {
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Entrypoint": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"], "Labels": { "name": name } },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = blob(&blobs, CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let manifest = blob(&blobs, MANIFEST, manifest.to_string().as_bytes())?;
        let (repository, tag) = name.rsplit_once(':').ok_or_else(|| format!("{name} has no tag"))?;
        let digest = manifest["digest"].as_str().unwrap_or_default();
        // One that was pulled has both names.
        for name in [(*name).to_owned(), format!("{repository}@{digest}")] {
            let mut manifest = manifest.clone();
            manifest["annotations"] =
                json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
            manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
            manifests.push(manifest);
        }
    }
    write(&layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": manifests }).to_string().as_bytes())?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = dir.join("image.tar");
    tar(&layout, &archive)?;
    Ok(archive)
}

/// Keeps a blob under its digest; gives its descriptor.
fn blob(blobs: &Path, kind: &str, bytes: &[u8]) -> Result<Value, String> {
    let unnamed = blobs.join("unnamed");
    write(&unnamed, bytes)?;
    let said = output(Command::new("sha256sum").arg(&unnamed))?;
    let sum = said.split(' ').next().unwrap_or_default();
    fs::rename(&unnamed, blobs.join(sum)).map_err(|error| format!("{}: {error}", unnamed.display()))?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{sum}"), "size": bytes.len() }))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(file, bytes).map_err(|error| format!("{}: {error}", file.display()))
}

fn tar(dir: &Path, to: &Path) -> Result<(), String> {
    output(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(to).arg(".")).map(drop)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
