//! The store in Kubernetes' own API: Nodes, and beside them either the nodes' podCIDRs or loden's own objects.
//!
//! With a net-conf.json (flannel's way) the pools are the file's, a node's blocks are the podCIDRs that Kubernetes gave it, and all
//! that a node says of itself stands in its Node object's annotations, written through its status as flannel does: flannel's role is
//! enough. Without one, pools are objects of `pools.loden.dev`, and blocks are claimed by making objects of `blocks.loden.dev`.
//!
//! Of a Node only the metadata are listed and watched. A kubelet changes its Node all the time, so a record has the revision of
//! the Node at which the *record* was last changed; this handle remembers which that was.
//!
//! There are no leases. That one agent runs on a node is Kubernetes' own affair (a DaemonSet has one pod there, and a Node's name is
//! one kubelet's), and a sign of life from each agent every few seconds would be the API's heaviest load by far.

mod announce;
mod claims;
mod client;
mod custom;
mod fault;
mod follow;
mod node;
mod nodes;
mod object;
mod picture;
mod shared;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use loden_core::config::store::KubernetesAddress;
use loden_core::dialect::flannel::NetConf;
use loden_core::model::{Entry, Key, NodeName, Prefix, Record};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Expect, Listing, Readiness, Store, StoreError, Watch, compare};
use client::Client;
use fault::Fault;
use follow::Cursor;
use node::Dialect;
use object::{Kind, Meta, Object};
use picture::Picture;
use shared::{Shared, lock};

/// How often a write is tried that others are quicker with: a kubelet writes to its Node, too.
const TRIES: u32 = 8;
/// How many Nodes are read whole at a time.
const WHOLE_AT_ONCE: usize = 8;
/// For how long a condition is taken to be what was last seen of it.
const ANNOUNCED: Duration = Duration::from_secs(600);
/// The namespace whose uid stands for the cluster: it is made with it and cannot be removed.
const CLUSTER: &str = "kube-system";

/// The store.
pub struct Kubernetes {
    address: KubernetesAddress,
    client: Mutex<Client>,
    shared: Arc<Shared>,
    listed: Mutex<Listed>,
    announced: Mutex<Option<(NodeName, Readiness, Instant)>>,
}

/// The last listing.
#[derive(Default)]
struct Listed {
    revision: u64,
    cursors: Vec<Cursor>,
    /// Taken by the watch that begins there.
    picture: Option<Picture>,
}

impl Kubernetes {
    /// Reads the settings; the server need not be there yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the credentials or net-conf.json cannot be read.
    pub async fn open(address: &KubernetesAddress) -> Result<Self, StoreError> {
        read_dialect(address)?;
        Ok(Self {
            client: Mutex::new(connect(address).await?),
            address: address.clone(),
            shared: Arc::default(),
            listed: Mutex::default(),
            announced: Mutex::default(),
        })
    }

    fn client(&self) -> Client {
        lock(&self.client).clone()
    }

    fn has_pod_cidrs(&self) -> bool {
        self.address.net_conf.is_some()
    }

    /// All that there is.
    async fn read_all(&self, client: &Client) -> Result<(Picture, Vec<Cursor>), StoreError> {
        let mut picture = Picture::new(read_dialect(&self.address)?);
        let kinds: &[Kind] = if self.has_pod_cidrs() { &[Kind::Node] } else { &[Kind::Node, Kind::Pool, Kind::Block] };
        let mut cursors = Vec::new();
        for kind in kinds {
            let (objects, revision) = client.list(*kind).await.map_err(|fault| fault.at(&client.place))?;
            if self.has_pod_cidrs() && objects.is_empty() {
                // Whoever runs an agent runs it on a node.
                let cause =
                    "it has no Node at all, which cannot be: has its datastore been lost? Nothing is taken from it";
                return Err(Fault::Config(cause.to_owned()).at(&client.place));
            }
            let mut cidrs = self.read_whole(client, &picture, &objects).await?;
            for object in objects {
                let cidrs = cidrs.remove(&object.metadata.uid);
                picture.put(*kind, &object, cidrs.as_deref(), object.metadata.revision());
            }
            cursors.push((*kind, revision));
        }
        Ok((picture, cursors))
    }

    /// The podCIDRs of Nodes that do not say theirs in an annotation: a few are asked for at a time.
    async fn read_whole(
        &self,
        client: &Client,
        picture: &Picture,
        objects: &[Object],
    ) -> Result<BTreeMap<String, Vec<Prefix>>, StoreError> {
        let room = Arc::new(Semaphore::new(WHOLE_AT_ONCE));
        let mut tasks = JoinSet::new();
        for object in objects.iter().filter(|object| picture.wants_cidrs(&object.metadata)) {
            let (room, shared, client) = (Arc::clone(&room), Arc::clone(&self.shared), client.clone());
            let meta = object.metadata.clone();
            tasks.spawn(async move {
                // The semaphore is never closed.
                let _place = room.acquire().await.ok();
                let cidrs = shared.pod_cidrs(&client, &meta).await?;
                Ok::<_, StoreError>(cidrs.map(|cidrs| (meta.uid, cidrs)))
            });
        }
        let mut all = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            let read = done.map_err(|error| Fault::Transport(error.to_string()).at(&client.place))??;
            all.extend(read);
        }
        Ok(all)
    }

    fn contended(&self, client: &Client, key: &Key) -> StoreError {
        Fault::Transport(format!("{key} was written by others {TRIES} times meanwhile; it is tried again"))
            .at(&client.place)
    }

    fn refused(&self, key: &Key) -> StoreError {
        let file = self.address.net_conf.as_deref().unwrap_or_default();
        let cause = match key {
            Key::Pool(_) => format!("the pools are those of {file}: change that, and start the agents anew"),
            _ => "Kubernetes gives out the blocks (`net_conf`): a podCIDR goes with its Node".to_owned(),
        };
        StoreError::Refused { key: key.clone(), cause }
    }
}

#[async_trait]
impl Store for Kubernetes {
    /// All records. Sorts of objects are listed one after the other, and the watch of each goes on from its own list.
    async fn list(&self) -> Result<Listing, StoreError> {
        // Tokens and certificates run out and are renewed where they came from.
        let client = connect(&self.address).await?;
        lock(&self.client).clone_from(&client);
        let id = if self.has_pod_cidrs() {
            // flannel's role does not let anybody ask; the CA that signs for the server tells clusters apart.
            "kubernetes".to_owned()
        } else {
            let uid = client.namespace_uid(CLUSTER).await.map_err(|fault| fault.at(&client.place))?;
            format!("kubernetes {uid}")
        };
        let (picture, cursors) = self.read_all(&client).await?;
        self.shared.begin(&picture);
        let entries: Vec<Entry> = picture.entries().cloned().map(|entry| self.shared.stamp(entry)).collect();
        let flaws = picture.flaws().clone();
        let mut listed = lock(&self.listed);
        // One number for several: it is the greatest, and another one when anything is other.
        let greatest = cursors.iter().filter_map(|(_, at)| at.parse::<u64>().ok()).max().unwrap_or(0);
        let least = listed.revision + u64::from(listed.cursors != cursors);
        *listed = Listed { revision: greatest.max(least), cursors, picture: Some(picture) };
        Ok(Listing { entries, revision: listed.revision, id, flaws })
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let client = self.client();
        if let Some((kind, name)) = custom::place(key).filter(|_| !self.has_pod_cidrs()) {
            let object = client.get(kind, &name).await.map_err(|fault| fault.at(&client.place))?;
            return object.map(|object| self.read_custom(kind, &object)).transpose();
        }
        match key {
            Key::Lease(_) => Ok(None),
            Key::Node(name) => {
                let meta = client.get_meta(Kind::Node, name.as_str()).await.map_err(|fault| fault.at(&client.place))?;
                let Some(meta) = meta else { return Ok(None) };
                let unreadable = |cause| StoreError::Unreadable { key: key.to_string(), cause };
                let reading = read_dialect(&self.address)?.read(&meta).map_err(unreadable)?;
                Ok(reading.map(|reading| self.shared.stamp(entry(Record::Node(reading.node), &meta))))
            }
            Key::Pool(_) | Key::Block(_) => {
                let (picture, _) = self.read_all(&client).await?;
                Ok(picture.entry(key).cloned().map(|entry| self.shared.stamp(entry)))
            }
        }
    }

    /// A lease is taken without a word to anybody; see the head of this module.
    async fn put(&self, record: Record, expect: Expect, _ttl: Option<Duration>) -> Result<Entry, StoreError> {
        let key = record.key();
        match (record, custom::place(&key)) {
            (Record::Lease(lease), _) => {
                self.shared.set_own(&lease.node);
                Ok(Entry { record: Record::Lease(lease), created: 1, revision: 1 })
            }
            (Record::Node(node), _) => self.put_node(node, expect).await,
            (Record::Block(block), _) if self.has_pod_cidrs() => self.put_pod_cidr(block, expect).await,
            (record, Some((kind, name))) if !self.has_pod_cidrs() => self.put_custom(kind, &name, record, expect).await,
            (Record::Pool(_) | Record::Block(_), _) => Err(self.refused(&key)),
        }
    }

    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        let client = self.client();
        for _ in 0..TRIES {
            let done = match (key, custom::place(key)) {
                (Key::Lease(_), _) => Some(()),
                (Key::Node(name), _) => self.delete_node(&client, name, expect).await?,
                (_, Some((kind, name))) if !self.has_pod_cidrs() => {
                    self.delete_custom(&client, kind, &name, key, expect).await?
                }
                _ => return Err(self.refused(key)),
            };
            if done.is_some() {
                return Ok(());
            }
        }
        Err(self.contended(&client, key))
    }

    /// Nothing ends here by itself, so there is nothing to do.
    async fn renew(&self, _key: &Key, _revision: u64, _ttl: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    /// The changes behind the last listing of this handle, once: revisions of other origin are no place in several sorts' histories.
    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        let client = self.client();
        let (picture, cursors) = {
            let mut listed = lock(&self.listed);
            match listed.picture.take() {
                Some(picture) if listed.revision == after => (picture, listed.cursors.clone()),
                other => {
                    listed.picture = other;
                    return Err(StoreError::Compacted { oldest: listed.revision });
                }
            }
        };
        let (sender, watch) = Watch::new(&client.place);
        tokio::spawn(follow::follow(Arc::clone(&self.shared), client, picture, cursors, sender));
        Ok(watch)
    }

    fn gives_blocks(&self) -> bool {
        self.has_pod_cidrs()
    }

    async fn announce(&self, node: &NodeName, readiness: &Readiness) -> Result<(), StoreError> {
        let is_said = |said: &(NodeName, Readiness, Instant)| {
            said.0 == *node && said.1 == *readiness && said.2.elapsed() < ANNOUNCED
        };
        if lock(&self.announced).as_ref().is_some_and(is_said) {
            return Ok(());
        }
        let client = self.client();
        announce::announce(&client, node, readiness).await.map_err(|fault| fault.at(&client.place))?;
        *lock(&self.announced) = Some((node.clone(), readiness.clone(), Instant::now()));
        Ok(())
    }
}

/// The node that a pod is on.
///
/// # Errors
/// [`StoreError`].
pub async fn node_of_pod(address: &KubernetesAddress, namespace: &str, pod: &str) -> Result<NodeName, StoreError> {
    let client = connect(address).await?;
    let name = client.node_of_pod(namespace, pod).await.map_err(|fault| fault.at(&client.place))?;
    let odd = |cause: String| Fault::Config(format!("pod {namespace}/{pod}: {cause}")).at(&client.place);
    name.parse().map_err(|error| odd(format!("its node's name {name:?} cannot be one: {error}")))
}

async fn connect(address: &KubernetesAddress) -> Result<Client, StoreError> {
    let place = address.server.as_deref().or(address.kubeconfig.as_deref()).unwrap_or("its usual place");
    Client::open(address).await.map_err(|fault| fault.at(place))
}

/// net-conf.json is read with each listing. Those who change it start the pods anew, as flannel has it.
fn read_dialect(address: &KubernetesAddress) -> Result<Dialect, StoreError> {
    let prefix = address.annotations.clone();
    let Some(file) = &address.net_conf else { return Ok(Dialect { prefix, net_conf: None }) };
    let fail = |cause: String| StoreError::Unavailable { place: file.clone(), cause };
    let text = std::fs::read(file).map_err(|error| fail(error.to_string()))?;
    let conf = NetConf::parse(&text, true).map_err(|error| fail(error.to_string()))?;
    Ok(Dialect { prefix, net_conf: Some(conf.pools) })
}

/// A compare-and-swap by the revision of the record, or by the object's own.
fn check(key: &Key, expect: Expect, found: Option<&Entry>, revision: u64) -> Result<(), StoreError> {
    match (expect, found) {
        (Expect::Revision(expected), Some(_)) if expected == revision => Ok(()),
        _ => compare::check(key, expect, found),
    }
}

fn entry(record: Record, meta: &Meta) -> Entry {
    Entry { record, created: meta.created, revision: meta.revision() }
}

/// `None` when somebody else was quicker.
fn unless_conflict<T>(client: &Client, done: Result<T, Fault>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(fault) if fault.is_conflict() => Ok(None),
        Err(fault) => Err(fault.at(&client.place)),
    }
}
