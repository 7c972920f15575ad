//! `lodend`: the agent of a node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use loden_agent::cluster::{Cluster, ClusterHealth, Identity, Opening, Outward};
use loden_agent::dhcp::Dhcp;
use loden_agent::flanneld::{self, Asked, Setup};
use loden_agent::host::Host;
use loden_agent::metrics::Metrics;
use loden_agent::misses::HeldBack;
use loden_agent::subnet_file::SubnetFile;
use loden_agent::underlay::Finder;
use loden_agent::worker::{self, Inbox, Worker};
use loden_agent::{AgentError, api, identity, ledger, misses, offload};
use loden_core::config::node::NodeConfig;
use loden_core::kernel::{Event, Sort};
use loden_core::view::Local;
use loden_linux::LinuxKernel;
use loden_linux::lock::FileLock;
use loden_linux::run_dir::RunDir;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// The agent of a node: keeps this host's kernel as the cluster wants it.
#[derive(Debug, Parser)]
#[command(name = "lodend", version)]
struct Args {
    /// The configuration file. Without one everything has its default.
    #[arg(long, env = "LODEN_CONFIG", default_value = CONFIG)]
    config: PathBuf,
    /// This node's name; default: the host's.
    #[arg(long, env = "LODEN_NODE")]
    node: Option<String>,
    /// Where the cluster's state is, such as sqlite:/var/lib/loden/loden.db.
    #[arg(long)]
    store: Option<String>,
    /// What lives as long as the pods.
    #[arg(long)]
    run_dir: Option<String>,
    /// What survives a reboot.
    #[arg(long)]
    state_dir: Option<String>,
    /// The external interface, by name or address; several are tried in order.
    #[arg(long)]
    iface: Vec<String>,
    /// The external interface, by a regular expression over names.
    #[arg(long)]
    iface_regex: Option<String>,
    /// The external interface, by the route to this address.
    #[arg(long)]
    iface_can_reach: Option<String>,
    /// Where /metrics, /healthz and /readyz are served besides the Unix socket.
    #[arg(long)]
    listen: Option<String>,
    /// `text` or `json`.
    #[arg(long)]
    log: Option<String>,
}

impl Args {
    /// What was said on the command line, as keys of the configuration.
    fn overrides(&self) -> Map<String, Value> {
        let texts = [
            ("node", &self.node),
            ("store", &self.store),
            ("run_dir", &self.run_dir),
            ("state_dir", &self.state_dir),
            ("iface_regex", &self.iface_regex),
            ("iface_can_reach", &self.iface_can_reach),
            ("listen", &self.listen),
            ("log", &self.log),
        ];
        let mut map: Map<String, Value> = texts
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), Value::String(value.clone()?))))
            .collect();
        if !self.iface.is_empty() {
            map.insert("iface".to_owned(), self.iface.clone().into());
        }
        map
    }
}

/// Where the configuration is unless something else is said.
const CONFIG: &str = "/etc/loden/lodend.toml";

fn main() -> ExitCode {
    let is_flanneld = std::env::args_os().next().is_some_and(|program| flanneld::is_name(&program));
    let (name, ended) = if is_flanneld { ("flanneld", as_flanneld()) } else { ("lodend", as_lodend()) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            // Before the log is set up this is all that is seen.
            say(&format!("{name}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// To people, on standard error; one that is closed has nobody who reads.
fn say(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

fn as_lodend() -> Result<(), AgentError> {
    let args = Args::parse();
    run(&args.config, Setup { keys: args.overrides(), ..Setup::default() })
}

fn as_flanneld() -> Result<(), AgentError> {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let get = |name: &str| std::env::var(name).ok();
    match flanneld::read(&args, get)? {
        Asked::Text(text) => {
            say(&text);
            Ok(())
        }
        Asked::Run(setup) => run(Path::new(&get("LODEN_CONFIG").unwrap_or_else(|| CONFIG.to_owned())), *setup),
    }
}

fn run(config_file: &Path, setup: Setup) -> Result<(), AgentError> {
    let mut config = read_config(config_file, setup.keys)?;
    start_log(&config);
    if let Some(spare) = setup.spare_run_dir.filter(|_| RunDir::new(&config.run_dir).make().is_err()) {
        tracing::warn!("{} cannot be made; {spare} is taken in its place", config.run_dir);
        config.run_dir = spare;
    }
    setup.without_effect.iter().for_each(|text| tracing::warn!("{text}"));
    let start = |what| move |error: std::io::Error| AgentError::Start { what, cause: error.to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start("the runtime"))?;
    let node = match &setup.pod {
        Some((namespace, pod)) if config.node.is_none() => {
            runtime.block_on(identity::node_of_pod(&config, namespace, pod))?
        }
        _ => identity::node_name(&config)?,
    };
    let run_dir = RunDir::new(&config.run_dir);
    let fail = |error: loden_linux::LinuxError| AgentError::File {
        path: config.run_dir.clone().into(),
        cause: error.to_string(),
    };
    run_dir.make().map_err(fail)?;
    let _only_agent = FileLock::try_acquire(&run_dir.agent_lock())
        .map_err(fail)?
        .map_err(|holder| AgentError::SecondAgent { run_dir: config.run_dir.clone().into(), holder })?;
    let uid = identity::node_uid(Path::new(&config.state_dir))?;
    let subnet_file = config.subnet_file.as_deref().map(SubnetFile::new);
    let (preferred, fault) = subnet_file.as_ref().map(SubnetFile::former).unwrap_or_default();
    // It is written anew as soon as the node has its blocks.
    fault.iter().for_each(|fault| tracing::warn!("{fault}"));
    let who = Identity {
        node,
        uid,
        instance: identity::instance()?,
        labels: config.labels.clone(),
        state_dir: config.state_dir.clone().into(),
        run_dir: run_dir.clone(),
        preferred,
        announces: config.announce,
    };
    tracing::info!(node = %who.node, uid = %who.uid, store = config.store, "lodend {}", env!("CARGO_PKG_VERSION"));

    let finder = Finder::new(&config, config_file)?;
    let kernel_error = |error: loden_linux::LinuxError| AgentError::Kernel(error.to_string());
    let mut kernel = LinuxKernel::open().map_err(kernel_error)?;
    let (inbox, queue) = channel();
    let (outward, outward_seen) = watch::channel(Outward::default());
    let (health, health_seen) = watch::channel(ClusterHealth::default());
    let (on_ready, ready) = oneshot::channel();
    let (metrics, pulse) = (Arc::new(Metrics::default()), Arc::new(Mutex::new(Instant::now())));
    let underlay_name = Arc::new(Mutex::new(None));
    worker::listen(&mut kernel, inbox.clone(), Arc::clone(&underlay_name)).map_err(kernel_error)?;
    let held_back = Arc::new(HeldBack::default());
    misses::listen(inbox.clone(), Arc::clone(&held_back)).map_err(kernel_error)?;
    let attached = inbox.clone();
    // A receiver that is gone means that the agent is stopping.
    let leased = inbox.clone();
    let dhcp = Dhcp::start(run_dir.clone(), move |news| drop(leased.send(Inbox::Dhcp(news)))).map_err(kernel_error)?;
    let tested = inbox.clone();
    let offload = || offload::start(move |news| drop(tested.send(Inbox::Offload(news)))).map_err(kernel_error);
    let offload = config.checksum_test.then(offload).transpose()?;
    let leases = dhcp.clone();
    let tell = move |now| {
        leases.look();
        drop(attached.send(Inbox::Attached(now)));
    };
    ledger::follow(&run_dir, tell).map_err(kernel_error)?;
    let worker = Worker {
        inbox: queue,
        local: Local {
            node: who.node.clone(),
            uid: who.uid.clone(),
            labels: who.labels.clone(),
            bridge: config.bridge,
            found: kernel.addresses_of_devices().map_err(kernel_error)?,
            rules: config.rules,
            underlay: None,
            abilities: loden_linux::abilities::find().map_err(kernel_error)?,
        },
        finder,
        run_dir: run_dir.clone(),
        resync: Duration::from_secs(config.resync_seconds.into()),
        block_idle: Duration::from_secs(config.block_idle_seconds.into()),
        outward,
        cluster: health_seen,
        store_url: config.store.clone(),
        metrics: Arc::clone(&metrics),
        pulse: Arc::clone(&pulse),
        on_ready: Some(on_ready),
        subnet_file,
        offload,
        underlay_name,
        flow_age: Duration::from_secs(config.flow_seconds.into()),
        held_back,
    };
    let ended = inbox.clone();
    // A receiver that is gone means that the agent is stopping.
    let kernel = Host::new(kernel, move || drop(ended.send(Inbox::Kernel(Event::Stale(Sort::Tunnel)))));
    let spawned = std::thread::Builder::new().name("kernel".to_owned()).spawn(move || worker.run(kernel));
    let thread = spawned.map_err(start("the kernel's thread"))?;
    let api = api::Api { inbox: inbox.clone(), pulse, metrics, dhcp };
    let served = runtime.block_on(serve(&config, &run_dir, who, api, inbox.clone(), (outward_seen, health, ready)));
    // The kernel's side has ended by itself only if it failed, which it has logged.
    let _ = inbox.send(Inbox::Stop);
    let _ = thread.join();
    tracing::info!("stopped; the kernel is left as it is");
    served
}

type Ends = (watch::Receiver<Outward>, watch::Sender<ClusterHealth>, oneshot::Receiver<()>);

/// The services' side, until a signal says to stop.
async fn serve(
    config: &NodeConfig,
    run_dir: &RunDir,
    who: Identity,
    api: api::Api,
    inbox: Sender<Inbox>,
    (outward, health, ready): Ends,
) -> Result<(), AgentError> {
    let start = |error: std::io::Error| AgentError::Start { what: "signal handling", cause: error.to_string() };
    let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
    api::serve_local(api.clone(), &run_dir.agent_socket())?;
    if let Some(address) = config.listen {
        api::serve_public(api, address).await?;
    }
    let url = config.store.clone();
    let open = Box::new(move || -> Opening {
        let url = url.clone();
        Box::pin(async move { loden_store::open(&url).await })
    });
    // A receiver that is gone means that the agent is stopping.
    let deliver = Box::new(move |news| drop(inbox.send(Inbox::News(news))));
    tokio::spawn(Cluster::new(open, who, outward, health, deliver).run());
    tokio::spawn(async move {
        if ready.await.is_ok() {
            tracing::info!("ready");
            notify(&[sd_notify::NotifyState::Ready]);
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// Tells systemd, if it listens.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// Reads the file, puts what the command line says over it, and parses the whole.
fn read_config(path: &Path, overrides: Map<String, Value>) -> Result<NodeConfig, AgentError> {
    let file_error = |cause: String| AgentError::ConfigFile { path: path.to_owned(), cause };
    let mut tree = match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str::<Map<String, Value>>(&text).map_err(|error| file_error(error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(file_error(error.to_string())),
    };
    tree.extend(overrides);
    NodeConfig::parse(Value::Object(tree)).map_err(|source| AgentError::Config { path: path.to_owned(), source })
}

fn start_log(config: &NodeConfig) {
    // The client of Kubernetes logs as an error each time that nobody answers; what comes of it is said here.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("kube_client=off,{}", config.log_level))
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    if config.log_json {
        builder.json().init();
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        builder.with_ansi(is_terminal).init();
    }
}
