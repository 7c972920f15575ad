//! What flanneld left of rules goes, by either program, and nothing else does.

use std::io::Write;
use std::process::{Command, Stdio};

use loden_linux::nft::former::Former;

use crate::support::in_namespace;

fn remove() -> Result<Vec<String>, loden_linux::LinuxError> {
    Former::open().expect("a socket").remove()
}

fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The lock file is the machine's, and this namespace has nothing to do with it.
    let mut child =
        command.env("XTABLES_LOCKFILE", "/dev/null").spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {out}{err}");
    out.into_owned()
}

/// flanneld's rules as it gives them to `iptables-restore`, with others' beside them.
fn iptables(save: &str, network: &str, multicast: &str) -> String {
    let block = network.replace("/16", "/24").replace("/48", "/64");
    let comment = "-m comment --comment \"flanneld masq\"";
    let text = format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n:KUBE-POSTROUTING - [0:0]\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A POSTROUTING {comment} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {block} -d {network} {comment} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} ! -d {multicast} {comment} -j MASQUERADE --random-fully\nCOMMIT\n\
         *filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FORWARD -m comment --comment \"another one\" -j ACCEPT\n\
         -A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n"
    );
    run(save, &["--noflush"], &text);
    text
}

const NFT: &str = "table ip flannel-ipv4 { comment \"rules for flannel-ipv4\"\n chain postrtg {\n\
    type nat hook postrouting priority srcnat; policy accept;\n ip saddr 10.244.0.0/16 masquerade fully-random\n}\n}\n\
    table ip6 flannel-ipv6 {\n chain forward {\n type filter hook forward priority filter; policy accept;\n}\n}\n\
    table ip flannel { chain theirs { }\n }\n";

#[test]
fn by_either_program_and_nothing_else() {
    in_namespace(|| {
        assert_eq!(remove().expect("nothing is there"), Vec::<String>::new());
        run("nft", &["-f", "-"], NFT);
        iptables("iptables-nft-restore", "10.244.0.0/16", "224.0.0.0/4");
        iptables("ip6tables-nft-restore", "fd00:244::/48", "ff00::/8");
        assert_eq!(
            remove().expect("removed"),
            [
                "table ip flannel-ipv4",
                "table ip6 flannel-ipv6",
                "chain FLANNEL-POSTRTG of table ip nat",
                "chain FLANNEL-FWD of table ip filter",
                "chain FLANNEL-POSTRTG of table ip6 nat",
                "chain FLANNEL-FWD of table ip6 filter",
            ]
        );
        let left = run("nft", &["list", "ruleset"], "");
        assert!(!left.contains("FLANNEL") && !left.contains("flannel-ip"), "{left}");
        for theirs in ["table ip flannel {", "jump KUBE-POSTROUTING"] {
            assert!(left.contains(theirs), "{theirs}: {left}");
        }
        // iptables still reads what is left.
        let saved = run("iptables-nft-save", &[], "");
        assert!(saved.contains("-A POSTROUTING -j KUBE-POSTROUTING") && saved.contains("another one"), "{saved}");
        assert_eq!(remove().expect("nothing is there"), Vec::<String>::new());
    });
}

#[test]
fn a_chain_that_somebody_else_jumps_to_keeps_all_in_its_place() {
    in_namespace(|| {
        iptables("iptables-nft-restore", "10.244.0.0/16", "224.0.0.0/4");
        run("iptables-nft-restore", &["--noflush"], "*nat\n:MINE - [0:0]\n-A MINE -j FLANNEL-POSTRTG\nCOMMIT\n");
        let before = run("iptables-nft-save", &[], "");
        let error = remove().expect_err("the kernel refuses").to_string();
        assert!(error.contains("removal of chain FLANNEL-POSTRTG"), "{error}");
        let rules =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(&run("iptables-nft-save", &[], "")), rules(&before));
    });
}
