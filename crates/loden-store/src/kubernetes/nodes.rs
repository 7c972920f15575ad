//! Writing what nodes say: annotations of their Nodes, and the identity that a podCIDR is fenced by.

use std::collections::BTreeMap;

use loden_core::model::{Block, Entry, Key, Node, NodeName, Prefix, Record};
use serde_json::json;

use super::client::Client;
use super::node::{self, Dialect};
use super::object::{Kind, Meta, Object};
use super::{Kubernetes, TRIES, check, entry, read_dialect, unless_conflict};
use crate::{Expect, StoreError};

impl Kubernetes {
    /// A Node whole, and what it says.
    async fn served(&self, client: &Client, name: &NodeName) -> Result<(Object, Dialect, Option<Node>), StoreError> {
        let object = client.get(Kind::Node, name.as_str()).await.map_err(|fault| fault.at(&client.place))?;
        let Some(object) = object else {
            return Err(StoreError::Refused {
                key: Key::Node(name.clone()),
                cause: "Kubernetes has no Node of this name: the kubelet makes it. Start that, or set `node` to the Node's name"
                    .to_owned(),
            });
        };
        let dialect = read_dialect(&self.address)?;
        // One that cannot be read is written anew by its node, and by nobody else.
        let node = dialect.read(&object.metadata).ok().flatten().map(|reading| reading.node);
        Ok((object, dialect, node))
    }

    pub(super) async fn put_node(&self, node: Node, expect: Expect) -> Result<Entry, StoreError> {
        let key = Key::Node(node.name.clone());
        let client = self.client();
        for _ in 0..TRIES {
            let (object, dialect, found) = self.served(&client, &node.name).await?;
            let found = found.map(|node| self.shared.stamp(entry(Record::Node(node), &object.metadata)));
            check(&key, expect, found.as_ref(), object.metadata.revision())?;
            let wishes = match &found {
                Some(Entry { record: Record::Node(found), .. }) => (found.public, found.asked),
                _ => Default::default(),
            };
            let wanted = Record::Node(Node { public: wishes.0, asked: wishes.1, ..node.clone() });
            let cidrs = self.own_cidrs(&object)?;
            match found {
                Some(found) if found.record == wanted => return Ok(found),
                _ => {}
            }
            if let Some(written) = self.annotate(&client, &object, dialect.write(&node, cidrs.as_deref())).await? {
                return self.written(&dialect, &key, &written);
            }
        }
        Err(self.contended(&client, &key))
    }

    /// In flannel's way a node without a podCIDR is of no use to anybody.
    fn own_cidrs(&self, object: &Object) -> Result<Option<Vec<Prefix>>, StoreError> {
        if !self.has_pod_cidrs() {
            return Ok(None);
        }
        let name = &object.metadata.name;
        let cidrs =
            node::pod_cidrs(object).map_err(|cause| StoreError::Unreadable { key: format!("node/{name}"), cause })?;
        if cidrs.is_empty() {
            return Err(StoreError::Unavailable {
                place: format!("node/{name}"),
                cause:
                    "Kubernetes has given it no podCIDR: start the controller manager with --allocate-node-cidrs and \
                        --cluster-cidr, or leave out `net_conf` for pools of loden's own"
                        .to_owned(),
            });
        }
        Ok(Some(cidrs))
    }

    /// Writes annotations of a Node as it was read; `None` when it has changed since.
    async fn annotate(
        &self,
        client: &Client,
        object: &Object,
        annotations: BTreeMap<String, Option<String>>,
    ) -> Result<Option<Object>, StoreError> {
        let meta = &object.metadata;
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "annotations": annotations}});
        unless_conflict(client, client.patch(Kind::Node, &meta.name, &patch).await)
    }

    fn written(&self, dialect: &Dialect, key: &Key, object: &Object) -> Result<Entry, StoreError> {
        let unreadable = |cause: String| StoreError::Unreadable { key: key.to_string(), cause };
        let reading = dialect.read(&object.metadata).map_err(unreadable)?;
        let node = reading.ok_or_else(|| unreadable("the API did not keep what was written".to_owned()))?.node;
        let record = match key {
            Key::Block(cidr) => pod_cidr_block(dialect, *cidr, &node),
            _ => Some(Record::Node(node)),
        };
        let record = record.ok_or_else(|| unreadable("it lies in no pool of net-conf.json".to_owned()))?;
        Ok(self.shared.stamp(entry(record, &object.metadata)))
    }

    /// A podCIDR is its Node's; what can be written is the identity that it is fenced by.
    pub(super) async fn put_pod_cidr(&self, block: Block, expect: Expect) -> Result<Entry, StoreError> {
        let key = Key::Block(block.cidr);
        let client = self.client();
        for _ in 0..TRIES {
            let (object, dialect, found) = self.served(&client, &block.owner).await?;
            let cidrs = self.own_cidrs(&object)?.unwrap_or_default();
            if !cidrs.contains(&block.cidr)
                || pod_cidr_block(&dialect, block.cidr, &Node::named(block.owner.clone(), block.owner_uid.clone()))
                    .is_none()
            {
                let given: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
                return Err(StoreError::Refused {
                    key,
                    cause: format!(
                        "Kubernetes gives out the blocks (`net_conf`), and {} has {}: leave out `net_conf` for pools of loden's own",
                        block.owner,
                        given.join(" and "),
                    ),
                });
            }
            let held = found.as_ref().and_then(|node| pod_cidr_block(&dialect, block.cidr, node));
            let held = held.map(|record| self.shared.stamp(entry(record, &object.metadata)));
            check(&key, expect, held.as_ref(), object.metadata.revision())?;
            let node = match found {
                Some(found) if found.uid == block.owner_uid => {
                    return held.ok_or_else(|| self.contended(&client, &key));
                }
                Some(found) => Node { uid: block.owner_uid.clone(), ..found },
                None => Node::named(block.owner.clone(), block.owner_uid.clone()),
            };
            if let Some(written) = self.annotate(&client, &object, dialect.write(&node, Some(&cidrs))).await? {
                return self.written(&dialect, &key, &written);
            }
        }
        Err(self.contended(&client, &key))
    }

    /// Takes away what a node says of itself; `None` when it has changed since.
    pub(super) async fn delete_node(
        &self,
        client: &Client,
        name: &NodeName,
        expect: Expect,
    ) -> Result<Option<()>, StoreError> {
        let key = Key::Node(name.clone());
        let meta = client.get_meta(Kind::Node, name.as_str()).await.map_err(|fault| fault.at(&client.place))?;
        let dialect = read_dialect(&self.address)?;
        let reading = meta.as_ref().map(|meta| dialect.read(meta));
        let node = reading.as_ref().and_then(|reading| Some(reading.as_ref().ok()?.as_ref()?.node.clone()));
        let found = node.zip(meta.as_ref()).map(|(node, meta)| self.shared.stamp(entry(Record::Node(node), meta)));
        check(&key, expect, found.as_ref(), meta.as_ref().map_or(0, Meta::revision))?;
        match meta.filter(|_| !matches!(reading, Some(Ok(None)))) {
            Some(metadata) => {
                let object = Object { metadata, ..Object::default() };
                Ok(self.annotate(client, &object, dialect.cleared()).await?.map(drop))
            }
            None => Ok(Some(())),
        }
    }
}

fn pod_cidr_block(dialect: &Dialect, cidr: Prefix, node: &Node) -> Option<Record> {
    let pool = dialect.net_conf.iter().flatten().find(|pool| pool.cidr.covers(cidr))?;
    let (pool, owner, owner_uid) = (pool.name.clone(), node.name.clone(), node.uid.clone());
    Some(Record::Block(Block { cidr, pool, owner, owner_uid }))
}
