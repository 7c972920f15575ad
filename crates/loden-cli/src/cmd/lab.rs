//! `loden lab`: whole clusters on this machine.

use std::path::Path;

use loden_lab::lab;
use loden_lab::probe::reach;
use loden_lab::{Binaries, Lab, Topology};

use crate::args::{Lab as Command, Labs, Output};
use crate::error::CliError;
use crate::render;

/// Runs the command.
pub fn run(args: &Labs, output: Output) -> Result<u8, CliError> {
    let labs = args.labs.as_path();
    match &args.command {
        Command::Up { file } => up(labs, file, output),
        Command::Ls => ls(labs, output),
        Command::Exec { lab, place, command } => {
            let code = Lab::open(&labs.join(lab))?.exec(place, &command[0], &command[1..])?;
            Ok(u8::try_from(code).unwrap_or(128))
        }
        Command::Down { lab } => {
            Lab::open(&labs.join(lab))?.down()?;
            render::text(&format!("lab {lab} is down\n"))?;
            Ok(0)
        }
        Command::Ping { lab } => ping(&Lab::open(&labs.join(lab))?, output),
    }
}

fn up(labs: &Path, file: &Path, output: Output) -> Result<u8, CliError> {
    let bad = |cause: String| CliError::File { path: file.display().to_string(), cause };
    let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    let topology = Topology::parse(&text)?;
    let own = std::env::current_exe().map_err(|error| bad(error.to_string()))?;
    let binaries = Binaries::in_dir(own.parent().unwrap_or(Path::new("/")));
    let mut tell = |step: &str| {
        if output == Output::Text {
            // Progress that cannot be shown is no reason to stop.
            let _ = render::text(&format!("· {step}\n"));
        }
    };
    let lab = Lab::up(&topology, &labs.join(&topology.name), binaries, true, &mut tell)?;
    match output {
        Output::Json => {
            render::json(&serde_json::json!({ "lab": lab.name(), "hosts": lab.hosts(), "pods": lab.pods() }))?
        }
        Output::Text => render::text(&format!(
            "lab {name} is up: `loden lab ping {name}`, `loden lab exec {name} {host} sh`, `loden lab down {name}`\n",
            name = lab.name(),
            host = lab.hosts().first().map_or("HOST", |host| &host.name),
        ))?,
    }
    Ok(0)
}

fn ls(labs: &Path, output: Output) -> Result<u8, CliError> {
    let mut rows = Vec::new();
    for name in lab::list(labs) {
        let lab = Lab::open(&labs.join(&name))?;
        let hosts: Vec<_> = lab.hosts().iter().map(|host| host.name.clone()).collect();
        rows.push((name, hosts, lab.pods().len()));
    }
    match output {
        Output::Json => render::json(&rows)?,
        Output::Text => render::text(&render::table(
            &["LAB", "HOSTS", "PODS"],
            rows.into_iter().map(|(name, hosts, pods)| vec![name, hosts.join(" "), pods.to_string()]),
        ))?,
    }
    Ok(0)
}

/// Exit code 1 when some pair does not reach.
fn ping(lab: &Lab, output: Output) -> Result<u8, CliError> {
    let probes = reach::all(lab)?;
    let (pairs, whole) = reach::count_pairs(&probes);
    match output {
        Output::Json => render::json(&probes)?,
        Output::Text => {
            let mut text = reach::table(&probes) + "\n";
            for probe in probes.iter().filter(|probe| probe.fault.is_some()) {
                text += &format!(
                    "{} -> {} {} {:?}, {} bytes: {}\n",
                    probe.from,
                    probe.to,
                    probe.family,
                    probe.protocol,
                    probe.payload,
                    probe.fault.as_deref().unwrap_or_default()
                );
            }
            render::text(&format!(
                "{text}{whole} of {pairs} pairs reach (4: IPv4, 6: IPv6, x: not; ICMP, UDP and TCP)\n"
            ))?;
        }
    }
    Ok(u8::from(whole < pairs))
}
