//! The arguments.

use std::path::PathBuf;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use loden_core::model::{AttachmentKey, Mac, NodeName};

/// A container network for Linux hosts and Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "loden", version)]
pub struct Args {
    /// Text for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value = "text", global = true)]
    pub output: Output,
    /// Where the agent's socket is.
    #[arg(long, default_value = "/run/loden", env = "LODEN_RUN_DIR", global = true)]
    pub run_dir: PathBuf,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// This node: its blocks, its peers, the health of each backend, with causes.
    Status,
    /// What a reconcile would do now. Exit code 2 when there is drift.
    Plan,
    /// Addresses of this node.
    #[command(subcommand)]
    Ipam(Ipam),
    /// Pods' macvlans on this host.
    #[command(subcommand)]
    Macvlan(Macvlan),
    /// The cluster's pools, in the datastore.
    #[command(subcommand)]
    Pool(Pool),
    /// All that a datastore holds: carried elsewhere, compared, checked.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Whole clusters on this machine, to learn and to test.
    Lab(Labs),
    /// Writes shell completions or man pages.
    #[command(subcommand, hide = true)]
    Generate(Generate),
}

/// Addresses.
#[derive(Debug, Subcommand)]
pub enum Ipam {
    /// The node's blocks and who has which address.
    Show,
}

/// Macvlans.
#[derive(Debug, Subcommand)]
pub enum Macvlan {
    /// Whose frames a macvlan in mode `source` lets in; changed while traffic flows.
    #[command(group = ArgGroup::new("change").multiple(false))]
    Sources {
        /// NETWORK/CONTAINER/INTERFACE, as `loden ipam show` has it.
        attachment: AttachmentKey,
        /// These and no others; without a value nobody's.
        #[arg(long, value_name = "MAC,…", num_args = 0.., value_delimiter = ',', group = "change")]
        set: Option<Vec<Mac>>,
        /// These as well.
        #[arg(long, value_name = "MAC,…", num_args = 1.., value_delimiter = ',', group = "change")]
        add: Option<Vec<Mac>>,
        /// No longer these.
        #[arg(long, value_name = "MAC,…", num_args = 1.., value_delimiter = ',', group = "change")]
        remove: Option<Vec<Mac>>,
    },
}

/// Where the datastore is.
#[derive(Debug, ClapArgs)]
pub struct Store {
    /// The datastore.
    #[arg(long, default_value = "sqlite:/var/lib/loden/loden.db", env = "LODEN_STORE")]
    pub store: String,
}

/// Pools.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Makes the pools as a file of [[pool]] tables has them; pools that are not in it go.
    Apply {
        /// The datastore.
        #[command(flatten)]
        store: Store,
        /// The file.
        file: PathBuf,
    },
    /// The pools that there are.
    Ls {
        /// The datastore.
        #[command(flatten)]
        store: Store,
    },
}

/// Datastores.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Writes all records as JSON; signs of life are left out.
    Export {
        /// The datastore.
        #[command(flatten)]
        store: Store,
    },
    /// Brings records in. What is otherwise there is left, and makes the exit code 2.
    Import {
        /// The datastore that they go to.
        #[command(flatten)]
        store: Store,
        /// An exported file, or the address of another datastore.
        from: String,
        /// What is imported replaces what is there.
        #[arg(long)]
        overwrite: bool,
        /// Only says what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// What two datastores, or exported files, do not have alike. Exit code 2 when there is something.
    Diff {
        /// The first.
        left: String,
        /// The second.
        right: String,
    },
    /// Looks for blocks with two owners or none, nodes at one address, what cannot be read. Exit code 2 when there is something.
    Check {
        /// The datastore.
        #[command(flatten)]
        store: Store,
    },
    /// Takes a node that is gone for good out, with its blocks: others may claim them then.
    Forget {
        /// The datastore.
        #[command(flatten)]
        store: Store,
        /// The node.
        node: NodeName,
        /// Though its agent shows signs of life.
        #[arg(long)]
        force: bool,
    },
}

/// Labs.
#[derive(Debug, ClapArgs)]
pub struct Labs {
    /// Where labs are, a directory each.
    #[arg(long, global = true, value_name = "DIR", default_value = loden_lab::lab::LABS, env = "LODEN_LABS")]
    pub labs: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Lab,
}

/// What is done with labs.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Makes a lab from a topology.
    Up {
        /// The topology, a TOML file.
        file: PathBuf,
    },
    /// The labs that there are.
    Ls,
    /// Runs a program in the namespace of a host or pod.
    Exec {
        /// The lab.
        lab: String,
        /// A host, a pod, `router` or `outside`.
        place: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Takes a lab down; nothing of it is left.
    Down {
        /// The lab.
        lab: String,
    },
    /// Sends real packets between all pods, hosts and the outside, and shows who reaches whom.
    Ping {
        /// The lab.
        lab: String,
    },
}

/// What is generated.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Man pages.
    Man {
        /// Where to.
        #[arg(long)]
        out: PathBuf,
    },
    /// Completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}
