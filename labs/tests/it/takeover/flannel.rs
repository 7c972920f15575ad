//! What flannel v0.28 leaves on a host and in etcd, laid by hand: devices, addresses, routes, ARP and FDB entries, rules, files, and pods
//! attached by the reference plugins.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use loden_core::model::{Family, PerFamily};
use loden_lab::lab::Lab;
use loden_lab::pod::{Call, Pod};
use loden_linux::netns::NetNs;
use loden_linux::spawn;
use serde_json::{Map, Value, json};

use crate::support::{binaries, wait_for};

/// Where Debian has the reference plugins (package containernetworking-plugins).
const REFERENCE: &str = "/usr/lib/cni";

/// Which backend, and which families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Vxlan,
    VxlanDualStack,
    HostGw,
}

impl Kind {
    pub fn net_conf(self) -> String {
        let backend = if self == Self::HostGw { "host-gw" } else { "vxlan" };
        let six = "\"EnableIPv6\":true,\"IPv6Network\":\"fd00:10:244::/56\",";
        let six = if self.is_dual() { six } else { "" };
        format!("{{\"Network\":\"10.244.0.0/16\",{six}\"Backend\":{{\"Type\":\"{backend}\"}}}}")
    }

    fn is_dual(self) -> bool {
        self == Self::VxlanDualStack
    }

    fn families(self) -> &'static [Family] {
        if self.is_dual() { &Family::ALL } else { &[Family::V4] }
    }
}

/// One host as flanneld knows it.
#[derive(Debug, Clone)]
pub struct Laid {
    pub kind: Kind,
    pub n: u8,
    pub mac: String,
    pub mac6: String,
}

impl Laid {
    pub fn new(kind: Kind, n: u8) -> Self {
        Self { kind, n, mac: format!("12:c6:65:89:b4:0{n}"), mac6: format!("2a:c6:65:89:b6:0{n}") }
    }

    pub fn name(&self) -> String {
        format!("host{}", self.n)
    }

    pub fn blocks(&self) -> Vec<String> {
        self.kind.families().iter().map(|family| self.block(*family)).collect()
    }

    fn block(&self, family: Family) -> String {
        let len = if family == Family::V4 { 24 } else { 64 };
        format!("{}/{len}", self.first(family))
    }

    /// The block's first address, which is also that of the VTEP.
    fn first(&self, family: Family) -> String {
        if family == Family::V4 { format!("10.244.{}.0", self.n) } else { format!("fd00:10:244:{}::", self.n) }
    }

    fn public(&self, family: Family) -> String {
        if family == Family::V4 { format!("192.0.2.{}", self.n) } else { format!("2001:db8:0:2::{}", self.n) }
    }

    /// Device and Ethernet address of the VTEP over an underlay of the family.
    fn vtep(&self, family: Family) -> (&'static str, &str) {
        if family == Family::V4 { ("flannel.1", &self.mac) } else { ("flannel-v6.1", &self.mac6) }
    }

    pub fn key(&self) -> String {
        let all = self.blocks().iter().map(|block| block.replace('/', "-")).collect::<Vec<_>>().join("&");
        format!("/coreos.com/network/subnets/{all}")
    }

    pub fn lease(&self) -> String {
        let data = |mac: &str| format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}");
        let six = if self.kind.is_dual() { format!("\"{}\"", self.public(Family::V6)) } else { "null".to_owned() };
        let backend = match self.kind {
            Kind::HostGw => "\"BackendType\":\"host-gw\"".to_owned(),
            Kind::Vxlan => format!("\"BackendType\":\"vxlan\",\"BackendData\":{}", data(&self.mac)),
            Kind::VxlanDualStack => format!(
                "\"BackendType\":\"vxlan\",\"BackendData\":{},\"BackendV6Data\":{}",
                data(&self.mac),
                data(&self.mac6)
            ),
        };
        format!("{{\"PublicIP\":\"{}\",\"PublicIPv6\":{six},{backend}}}", self.public(Family::V4))
    }

    /// The same as annotations of its Node.
    pub fn annotations(&self) -> Map<String, Value> {
        let lease: Value = serde_json::from_str(&self.lease()).expect("JSON");
        let data = |key: &str| match &lease[key] {
            Value::Null => "null".to_owned(),
            // Go's order of keys, which is not that of serde_json.
            data => format!("{{\"VNI\":1,\"VtepMAC\":{}}}", data["VtepMAC"]),
        };
        let mut all = vec![
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", lease["BackendType"].as_str().expect("text").to_owned()),
            ("backend-data", data("BackendData")),
            ("public-ip", self.public(Family::V4)),
        ];
        if self.kind.is_dual() {
            all.push(("backend-v6-data", data("BackendV6Data")));
            all.push(("public-ipv6", self.public(Family::V6)));
        }
        all.into_iter().map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value.into())).collect()
    }

    /// The same host as a lease has it.
    pub fn told_by(&self, lease: &Value) -> Self {
        let mac = lease["BackendData"]["VtepMAC"].as_str().expect("a MAC").to_owned();
        assert_eq!(lease["PublicIP"], self.public(Family::V4));
        Self { mac, ..self.clone() }
    }

    /// All that is not about peers.
    pub fn lay(&self, lab: &Lab) {
        run(lab, &self.name(), "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        if self.kind != Kind::HostGw {
            self.kind.families().iter().for_each(|family| self.lay_vtep(lab, *family));
        }
        self.lay_rules(lab);
        let file = self.subnet_file(lab);
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        fs::write(file, self.subnet_env()).expect("written");
    }

    pub fn lay_vtep(&self, lab: &Lab, family: Family) {
        let ((dev, mac), local, first) = (self.vtep(family), self.public(family), self.first(family));
        let len = family.bits();
        let text = format!(
            "ip link add {dev} address {mac} mtu 1450 type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning
             sysctl -qw net.ipv6.conf.{}.accept_ra=0
             ip addr add {first}/{len} dev {dev}
             ip link set {dev} up",
            dev.replace('.', "/"),
        );
        run(lab, &self.name(), &text);
    }

    /// What leads to a peer: the entries in flannel's order, routes without a protocol.
    pub fn reach(&self, lab: &Lab, peer: &Self) {
        for family in self.kind.families() {
            let (public, block, gateway) = (peer.public(*family), peer.block(*family), peer.first(*family));
            let (dev, mac) = peer.vtep(*family);
            let text = match self.kind {
                Kind::HostGw => format!("ip route replace {block} via {public} dev eth0"),
                _ => format!(
                    "ip neigh replace {gateway} lladdr {mac} dev {dev} nud permanent
                     bridge fdb replace {mac} dev {dev} dst {public} self permanent
                     ip route replace {block} via {gateway} dev {dev} onlink"
                ),
            };
            run(lab, &self.name(), &text);
        }
    }

    /// As flanneld gives them to `iptables-restore`, which is nftables' today.
    fn lay_rules(&self, lab: &Lab) {
        for family in self.kind.families() {
            let (six, network, multicast) = if *family == Family::V4 {
                ("", "10.244.0.0/16", "224.0.0.0/4")
            } else {
                ("6", "fd00:10:244::/56", "ff00::/8")
            };
            let (block, masq) = (self.block(*family), "-m comment --comment \"flanneld masq\"");
            let forward = "-m comment --comment \"flanneld forward\"";
            let text = format!(
                "XTABLES_LOCKFILE=/dev/null ip{six}tables-nft-restore --noflush <<'END'
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {masq} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN
-A FLANNEL-POSTRTG -s {block} -d {network} {masq} -j RETURN
-A FLANNEL-POSTRTG -s {network} -d {block} {masq} -j RETURN
-A FLANNEL-POSTRTG ! -s {network} -d {block} {masq} -j RETURN
-A FLANNEL-POSTRTG -s {network} ! -d {multicast} {masq} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {network} -d {network} {masq} -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s {network} {forward} -j ACCEPT
-A FLANNEL-FWD -d {network} {forward} -j ACCEPT
COMMIT
END"
            );
            run(lab, &self.name(), &text);
        }
    }

    /// What is left of flannel's: routes that are not loden's, rules.
    pub fn left(&self, lab: &Lab) -> Vec<String> {
        let routes = run(lab, &self.name(), "ip -4 route; ip -6 route");
        let is_old = |line: &&str| {
            (line.contains("10.244.") || line.contains("fd00:10:244:"))
                && !["proto 76", "dev cni0", "proto kernel"].iter().any(|usual| line.contains(usual))
        };
        let rules = run(
            lab,
            &self.name(),
            "XTABLES_LOCKFILE=/dev/null; export XTABLES_LOCKFILE; iptables-nft-save; ip6tables-nft-save",
        );
        let rules = rules.lines().filter(|line| line.contains("FLANNEL"));
        routes.lines().filter(is_old).chain(rules).map(str::to_owned).collect()
    }

    pub fn subnet_file(&self, lab: &Lab) -> PathBuf {
        lab.dir().join(self.name()).join("flannel/subnet.env")
    }

    pub fn subnet_env(&self) -> String {
        let six = format!("FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:{}::1/64\n", self.n);
        let (six, mtu) = match self.kind {
            Kind::Vxlan => (String::new(), 1450),
            // flanneld itself says 1450, of which a packet over IPv6 has 20 too many.
            Kind::VxlanDualStack => (six, 1430),
            Kind::HostGw => (String::new(), 1500),
        };
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{}.1/24\n{six}FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n",
            self.n
        )
    }

    /// flanneld's command line, which loden's agent takes, as far as it does not say who assigns subnets.
    pub fn flanneld(&self, lab: &Lab) -> Command {
        let bin = lab.dir().join("bin");
        fs::create_dir_all(&bin).expect("a directory");
        let program = bin.join("flanneld");
        if !program.exists() {
            symlink(&binaries().lodend, &program).expect("a link");
        }
        let mut command = Command::new(program);
        command.args(["--ip-masq", "-iface=eth0", "--healthz-port=8081"]);
        command.arg(format!("--subnet-file={}", self.subnet_file(lab).display()));
        command
    }

    fn data_dir(&self, lab: &Lab) -> PathBuf {
        lab.dir().join(self.name()).join("networks")
    }

    /// What host-local has given.
    pub fn given(&self, lab: &Lab) -> Vec<String> {
        let names = fs::read_dir(self.data_dir(lab).join("cbr0")).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).collect()
    }

    /// For loden's plugin: flannel's network, and where host-local's files are.
    pub fn plugin_keys(&self, lab: &Lab) -> Map<String, Value> {
        let keys = json!({ "name": "cbr0", "ipam": { "dataDir": self.data_dir(lab) } });
        keys.as_object().expect("an object").clone()
    }

    /// Attaches a pod as flannel's plugin has it done, with the delegate of the shipped conflist.
    pub fn attach(&self, lab: &Lab, name: &str) -> Pod {
        let netns = lab.netns_path(name);
        NetNs::create(&netns).expect("a pod's namespace");
        let ranges: Vec<Value> = self.blocks().iter().map(|block| json!([{ "subnet": block }])).collect();
        let mtu = if self.kind == Kind::HostGw { 1500 } else { 1430 };
        let routes = if self.kind.is_dual() {
            json!([{ "dst": "10.244.0.0/16" }, { "dst": "fd00:10:244::/56" }])
        } else {
            json!([{ "dst": "10.244.0.0/16" }])
        };
        let conf = json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "hairpinMode": true, "isDefaultGateway": true,
            "isGateway": true, "ipMasq": false, "mtu": mtu,
            "ipam": { "type": "host-local", "dataDir": self.data_dir(lab), "ranges": ranges, "routes": routes },
        });
        let (plugin, conf) = (Path::new(REFERENCE).join("bridge"), conf.to_string());
        let call = Call {
            plugin: &plugin,
            verb: "ADD",
            pod: name,
            ifname: "eth0",
            netns: &netns,
            path: Path::new(REFERENCE),
            conf: &conf,
        };
        let output = call.output(Some(&lab.netns(&self.name()).expect("netns"))).expect("executed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let result: Value = serde_json::from_str(&text).expect("JSON");
        let mut addresses = PerFamily::default();
        for ip in result["ips"].as_array().expect("addresses") {
            let net: ipnet::IpNet = ip["address"].as_str().expect("text").parse().expect("an address");
            addresses.set(Family::of(net.addr()), net.addr());
        }
        Pod { name: name.to_owned(), host: self.name(), addresses, mtu }
    }
}

/// One member of etcd on the lab's server; it ends with the test.
pub struct Etcd {
    child: Child,
    netns: PathBuf,
}

impl Etcd {
    pub const ENDPOINT: &str = "http://192.0.2.4:2379";
    pub const URL: &str = "flannel:http://192.0.2.4:2379";

    pub fn start(lab: &Lab) -> Self {
        let netns = lab.netns_path("etcd");
        let log = fs::File::create(lab.dir().join("etcd.log")).expect("a log");
        let mut command = Command::new("etcd");
        command.args(["--listen-client-urls", Self::ENDPOINT, "--advertise-client-urls", Self::ENDPOINT]);
        command.args([
            "--listen-peer-urls",
            "http://192.0.2.4:2380",
            "--initial-advertise-peer-urls",
            "http://192.0.2.4:2380",
        ]);
        command
            .args(["--initial-cluster", "default=http://192.0.2.4:2380"])
            .arg("--data-dir")
            .arg(lab.dir().join("etcd"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        spawn::in_netns(&mut command, &NetNs::open(&netns).expect("a namespace"), true)
            .expect("the server's namespace");
        let etcd = Self { child: command.spawn().expect("etcd"), netns };
        wait_for("etcd", || etcd.ctl(&["get", "x"]).is_some());
        etcd
    }

    /// Adds what says that etcd assigns subnets.
    pub fn complete(&self, command: &mut Command, lab: &Lab, host: &Laid) {
        command.args(["-etcd-endpoints", Self::ENDPOINT]);
        // Where the lab's host has its run directory, and what its node is called.
        command.env("LODEN_CONFIG", lab.agent(&host.name()).expect("an agent").config());
    }

    /// Writes a key, with a lease of a day as flanneld does.
    pub fn put(&self, key: &str, value: &str, is_lent: bool) {
        let mut args = vec!["put".to_owned(), key.to_owned(), value.to_owned()];
        if is_lent {
            let granted = self.ctl(&["lease", "grant", "86400"]).expect("granted");
            let id = granted.split_whitespace().nth(1).expect("its number");
            args.push(format!("--lease={id}"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.ctl(&args).expect("written");
    }

    pub fn get(&self, key: &str) -> String {
        self.ctl(&["get", "--print-value-only", key]).expect("read").trim_end().to_owned()
    }

    pub fn delete(&self, key: &str) {
        self.ctl(&["del", key]).expect("deleted");
    }

    pub fn ctl(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--dial-timeout=1s",
            "--command-timeout=2s",
            "--endpoints",
            Self::ENDPOINT,
        ]);
        command.args(args);
        spawn::in_netns(&mut command, &NetNs::open(&self.netns).expect("a namespace"), true)
            .expect("the server's namespace");
        let output = command.output().expect("etcdctl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script in a host's namespace, which must succeed; gives its output.
pub fn run(lab: &Lab, host: &str, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).stdin(Stdio::null());
    spawn::in_netns(&mut command, &lab.netns(host).expect("netns"), true).expect("the host's namespace");
    let output = command.output().expect("sh");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{host}: {script}: {out}{err}");
    out.into_owned()
}

/// The Ethernet address of a device; empty without one.
pub fn mac(lab: &Lab, host: &str, dev: &str) -> String {
    let text = run(lab, host, &format!("ip -o link show dev {dev} 2>/dev/null || true"));
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap_or_default().to_owned()
}
