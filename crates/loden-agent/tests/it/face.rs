//! The program under the name `flanneld`, as a unit file or a DaemonSet starts it.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn flanneld(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodend"));
    command.arg0("/opt/bin/flanneld").args(args).env_clear().envs(variables.iter().copied());
    command.output().expect("it ends")
}

#[test]
fn what_it_says_and_how_it_ends() {
    for (args, variables, code, says) in [
        (&["--version"][..], &[][..], 0, concat!("v", env!("CARGO_PKG_VERSION"), "+loden\n")),
        (&["-h"], &[], 0, "Usage: flanneld [OPTION]...\n"),
        (&["-no-such"], &[], 1, "flanneld: flag provided but not defined: -no-such (`flanneld --help` lists them)\n"),
        (
            &[],
            &[("FLANNELD_IP_MASQ", "maybe")],
            1,
            "flanneld: invalid value \"maybe\" for FLANNELD_IP_MASQ: parse error",
        ),
        (&["-etcd-endpoints=https://a:1"], &[], 1, "needs `ca`"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let file = format!("--subnet-file={}", dir.path().join("subnet.env").display());
        let args: Vec<&str> = args.iter().copied().chain([file.as_str()]).collect();
        let output = flanneld(&args, variables);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(says) && output.stdout.is_empty(), "{args:?}: {text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_lodend")).arg("--no-such").output().expect("it ends");
    assert_eq!(output.status.code(), Some(2), "under its own name it takes its own flags");
}
