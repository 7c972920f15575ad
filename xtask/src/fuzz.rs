//! `cargo xtask fuzz`: libFuzzer over all that comes from outside, beginning with the fixtures. The pure core has no unchecked memory
//! access that a sanitizer could find, and so the ordinary toolchain will do: only coverage is built in.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::shell;

const TARGETS: [&str; 7] =
    ["stdin", "prev_result", "stored", "flannel", "tunnel_frame", "tunnel_split", "tunnel_coalesce"];

/// As cargo-fuzz builds, without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// What may be asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// How long each target is run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
}

/// Runs each target in turn. What makes one fail is kept under `fuzz/artifacts` and named.
pub fn run(options: &Options) -> Result<()> {
    if !shell::has("c++") {
        shell::install(&["g++"], "libFuzzer is written in C++")?;
    }
    let dir = shell::root().join("fuzz");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = shell::cargo(&["build", "--quiet", "--release", "--target", &triple])
        .current_dir(&dir)
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .status()?;
    ensure!(status.success(), "the fuzz targets cannot be built");
    let mut failed = Vec::new();
    for target in TARGETS.into_iter().filter(|name| options.target.as_deref().is_none_or(|only| only == *name)) {
        let (corpus, artifacts) = (dir.join("corpus").join(target), dir.join("artifacts").join(target));
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        for (name, seed) in seeds(target)? {
            fs::write(corpus.join(name), seed)?;
        }
        shell::say(&format!("· {target} for {} s", options.seconds));
        let status = Command::new(dir.join("target").join(&triple).join("release").join(target))
            .arg(format!("-max_total_time={}", options.seconds))
            .args(["-timeout=10", "-max_len=16384", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&corpus)
            .status()
            .context(target)?;
        if !status.success() {
            failed.push(target);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} failed; see fuzz/artifacts", failed.join(", ")) }
}

/// What a target begins with: configurations of calls, and the attachments and results that they come to.
fn seeds(target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    for entry in fs::read_dir(shell::root().join("fixtures/cni"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match (target, path.extension().and_then(|extension| extension.to_str())) {
            ("stdin", Some("json")) => {
                let call: Value = serde_json::from_slice(&fs::read(&path)?)?;
                seeds.push((name, call["conf"].to_string().into_bytes()));
            }
            ("stored", Some("golden")) => seeds.extend(came_of(&path)?.first().map(|value| (name, to_bytes(value)))),
            ("prev_result", Some("golden")) => {
                seeds.extend(came_of(&path)?.get(1).map(|value| (name, to_bytes(value))))
            }
            _ => {}
        }
    }
    if target == "flannel" {
        seeds = flannel_seeds()?;
    }
    if target.starts_with("tunnel_") {
        seeds = tunnel_seeds(target)?;
    }
    if target == "stored" {
        seeds.push(("name".to_owned(), b"net@10.1.0.0_24+10.1.0.9-10.1.0.20".to_vec()));
        // A state: its mark, the border of what was used, how many wait, and one of them.
        let numbers = [4_u32, 1, 2, 77].map(u32::to_le_bytes).concat();
        seeds.push(("state".to_owned(), [b"LDB2", &numbers[..]].concat()));
    }
    ensure!(!seeds.is_empty(), "there are no fixtures to begin {target} with");
    Ok(seeds)
}

/// What flannel wrote, as it is, and the leases also as lines of a layout.
fn flannel_seeds() -> Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    let mut layout = b"config {\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}".to_vec();
    for entry in fs::read_dir(shell::root().join("fixtures/flannel"))? {
        let path = entry?.path();
        let text = fs::read(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("lease") => {
                let mut lines = text.splitn(2, |byte| *byte == b'\n');
                let (key, value) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
                layout.extend([b"\n", key, b" ", value.trim_ascii_end()].concat());
                seeds.extend([(format!("{name}-key"), key[b"subnets/".len()..].to_vec()), (name, value.to_vec())]);
            }
            Some("annotations" | "env" | "net-conf") => seeds.push((name, text)),
            _ => {}
        }
    }
    let flags =
        b"--ip-masq\n-etcd-endpoints=https://a:1\n--etcd-cafile\n/ca\n-iface\neth0\n--v=4\n--kube-subnet-mgr=false"
            .to_vec();
    seeds.extend([("layout".to_owned(), layout), ("flags".to_owned(), flags)]);
    Ok(seeds)
}

/// Segments of a flow each: as datagrams of the wire, one behind the other with their lengths, and as large packets of the device.
fn tunnel_seeds(target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    for entry in fs::read_dir(shell::root().join("fixtures/tunnel"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).context("a byte in hex");
        let packets = text.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect::<Result<Vec<u8>>>());
        let packets = packets.collect::<Result<Vec<_>>>()?;
        let Some(first) = packets.first() else { continue };
        let (is_v4, is_tcp) = (name.ends_with("v4"), name.starts_with("tcp"));
        let (gso, field) = match (is_tcp, is_v4) {
            (true, true) => (1, 16),
            (true, false) => (4, 16),
            (false, _) => (5, 6),
        };
        // The kernel's header: segments of 8 bytes, and where the checksum is.
        let begin = if is_v4 { 20_u16 } else { 40 };
        let words = [0, 8, begin, field].map(u16::to_ne_bytes).concat();
        seeds.push(match target {
            "tunnel_frame" => (name, [&[0, 0, 0], &first[..]].concat()),
            "tunnel_split" => (name, [&[1, gso], &words[..], first].concat()),
            _ => {
                let lengths = packets.iter().map(|packet| [&(packet.len() as u16).to_le_bytes(), &packet[..]].concat());
                (name, lengths.collect::<Vec<_>>().concat())
            }
        });
    }
    Ok(seeds)
}

/// The values of a golden file: none when it holds an error.
fn came_of(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::Deserializer::from_slice(&text).into_iter().map_while(Result::ok).filter(Value::is_object).collect())
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
