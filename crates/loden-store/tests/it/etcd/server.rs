//! Real etcd servers on loopback, each in a directory of its own; they end with the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use loden_store::Store;
use loden_store::etcd::Etcd;
use tempfile::TempDir;

use super::pki::Pki;

/// One member.
pub struct Server {
    args: Vec<String>,
    /// Where clients connect to.
    pub port: u16,
    scheme: &'static str,
    health: u16,
    child: Option<Child>,
    dir: TempDir,
}

impl Server {
    /// One server by itself, with more arguments.
    pub fn start(extra: &[&str]) -> Self {
        let [peer] = ports();
        let mut server = Self::member("m0", peer, &format!("m0=http://127.0.0.1:{peer}"), "http", extra);
        server.run();
        server.wait();
        server
    }

    /// One server that asks for clients' certificates.
    pub fn start_secured(pki: &Pki, cert: &str, extra: &[&str]) -> Self {
        let [peer] = ports();
        let (cert_file, key, ca) = (pki.cert(cert), pki.key(cert), pki.cert("ca"));
        let tls = ["--cert-file", &cert_file, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
        let mut args = tls.to_vec();
        args.extend(extra);
        let mut server = Self::member("m0", peer, &format!("m0=http://127.0.0.1:{peer}"), "https", &args);
        server.run();
        server.wait();
        server
    }

    /// Three members of one cluster.
    pub fn start_three() -> Vec<Self> {
        let peers: [u16; 3] = ports();
        let named = peers.iter().enumerate().map(|(n, peer)| format!("m{n}=http://127.0.0.1:{peer}"));
        let cluster = named.collect::<Vec<_>>().join(",");
        let member = |(n, peer): (usize, &u16)| Self::member(&format!("m{n}"), *peer, &cluster, "http", &[]);
        let mut members: Vec<Self> = peers.iter().enumerate().map(member).collect();
        members.iter_mut().for_each(Self::run);
        members.iter().for_each(Self::wait);
        members
    }

    fn member(name: &str, peer: u16, cluster: &str, scheme: &'static str, extra: &[&str]) -> Self {
        let [port, health] = ports();
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data").display().to_string();
        let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let health_url = format!("http://127.0.0.1:{health}");
        let mut args: Vec<String> = Vec::new();
        for (key, value) in [
            ("name", name),
            ("data-dir", &data),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", cluster),
            ("listen-metrics-urls", &health_url),
            ("logger", "zap"),
            ("log-outputs", "stderr"),
        ] {
            args.push(format!("--{key}={value}"));
        }
        args.extend(extra.iter().map(|arg| (*arg).to_owned()));
        Self { args, port, scheme, health, child: None, dir }
    }

    /// Starts it, or starts it again.
    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = Command::new("etcd");
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("etcd is installed (Debian: etcd-server)"));
    }

    /// Waits until it serves.
    pub fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.is_healthy() {
            assert!(Instant::now() < end, "etcd does not serve: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.health)) else { return false };
        let mut text = String::new();
        let asked = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
        asked.and_then(|()| stream.read_to_string(&mut text)).is_ok() && text.contains("\"true\"")
    }

    /// What it has logged.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// Stops or continues its process: a stopped one takes connections (its kernel does) and says nothing.
    pub fn freeze(&self, is_frozen: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let id = self.child.as_ref().expect("it runs").id();
        let pid = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid");
        kill_process(pid, if is_frozen { Signal::STOP } else { Signal::CONT }).expect("signalled");
    }

    /// Forgets all that is stored. It must not run.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("removed");
    }

    /// A file beside its data.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    }

    /// Where clients connect to.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// A store on it, with options of the address.
    pub fn store(&self, options: &str) -> Arc<dyn Store> {
        store(&[&self.endpoint()], options)
    }

    /// A client of etcd's own interface.
    pub async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.endpoint()], None).await.expect("connects")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store on some endpoints.
pub fn store(endpoints: &[&str], options: &str) -> Arc<dyn Store> {
    Arc::new(open(endpoints, options))
}

/// The same, by its own type.
pub fn open(endpoints: &[&str], options: &str) -> Etcd {
    let query = if options.is_empty() { String::new() } else { format!("?{options}") };
    let address = format!("etcd:{}{query}", endpoints.join(","));
    let address = address.parse().expect("an address");
    let loden_core::config::store::StoreAddress::Etcd(address) = address else { panic!("an address of etcd") };
    Etcd::new(&address).expect("opens")
}

/// Ports that nobody listens to, each given once, below those that connections take.
fn ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id() * 101;
    std::array::from_fn(|_| {
        loop {
            let n = seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let port = u16::try_from(12_000 + n % 20_000).expect("a port");
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    })
}

/// A port that nobody listens to.
pub fn closed_port() -> u16 {
    let [port] = ports();
    port
}

/// The time now, for people; never asserted.
pub fn say(text: &str) {
    Write::write_fmt(&mut std::io::stderr(), format_args!("{text}\n")).expect("stderr");
}
