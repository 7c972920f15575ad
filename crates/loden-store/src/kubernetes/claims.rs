//! Writing loden's own objects: a claim is made by making one, a change by a patch of what was read.

use loden_core::model::{Entry, Key, NodeName, Record};
use serde_json::{Value, json};

use super::client::Client;
use super::custom;
use super::object::{Kind, Object};
use super::{Kubernetes, TRIES, check, entry, unless_conflict};
use crate::{Expect, Store, StoreError};

impl Kubernetes {
    /// Writes an object of loden's own.
    pub(super) async fn put_custom(
        &self,
        kind: Kind,
        name: &str,
        record: Record,
        expect: Expect,
    ) -> Result<Entry, StoreError> {
        let (key, client) = (record.key(), self.client());
        let mut wanted = custom::write(kind, name, &record);
        for _ in 0..TRIES {
            // A claim is made at once: that it is new is what makes it one.
            let found = match expect {
                Expect::Absent => None,
                _ => client.get(kind, name).await.map_err(|fault| fault.at(&client.place))?,
            };
            let written = match found {
                None => {
                    check(&key, expect, None, 0)?;
                    if let Record::Block(block) = &record {
                        wanted["metadata"]["ownerReferences"] = self.owner(&client, &block.owner).await?;
                    }
                    let made = unless_conflict(&client, client.create(kind, &wanted).await)?;
                    if made.is_none() && expect == Expect::Absent {
                        let found = self.get(&key).await?;
                        check(&key, expect, found.as_ref(), 0)?;
                    }
                    made
                }
                Some(found) => {
                    let held = self.read_custom(kind, &found)?;
                    check(&key, expect, Some(&held), found.metadata.revision())?;
                    if held.record == record {
                        return Ok(held);
                    }
                    let mut patch = json!({"spec": difference(&found.spec, &wanted["spec"])});
                    patch["metadata"]["resourceVersion"] = found.metadata.resource_version.into();
                    unless_conflict(&client, client.patch(kind, name, &patch).await)?
                }
            };
            if let Some(written) = written {
                return self.read_custom(kind, &written);
            }
        }
        Err(self.contended(&client, &key))
    }

    /// A block goes with its Node: Kubernetes' own collector removes it. A Node that is gone gives back what it had.
    async fn owner(&self, client: &Client, name: &NodeName) -> Result<Value, StoreError> {
        let meta = client.get_meta(Kind::Node, name.as_str()).await.map_err(|fault| fault.at(&client.place))?;
        let Some(meta) = meta else {
            let cause = "Kubernetes has no Node of this name, and a block goes with its Node".to_owned();
            return Err(StoreError::Refused { key: Key::Node(name.clone()), cause });
        };
        Ok(json!([{"apiVersion": "v1", "kind": "Node", "name": meta.name, "uid": meta.uid}]))
    }

    pub(super) fn read_custom(&self, kind: Kind, object: &Object) -> Result<Entry, StoreError> {
        let unreadable =
            |cause| StoreError::Unreadable { key: format!("{}/{}", kind.resource(), object.metadata.name), cause };
        let record = custom::read(kind, object).map_err(unreadable)?;
        Ok(self.shared.stamp(entry(record, &object.metadata)))
    }

    /// Removes an object of loden's own; `None` when it has changed since.
    pub(super) async fn delete_custom(
        &self,
        client: &Client,
        kind: Kind,
        name: &str,
        key: &Key,
        expect: Expect,
    ) -> Result<Option<()>, StoreError> {
        let object = client.get(kind, name).await.map_err(|fault| fault.at(&client.place))?;
        let found = object.as_ref().map(|object| self.read_custom(kind, object)).transpose()?;
        let revision = object.map_or(0, |object| object.metadata.revision());
        check(key, expect, found.as_ref(), revision)?;
        match found {
            Some(_) => unless_conflict(client, client.delete(kind, name, revision).await),
            None => Ok(Some(())),
        }
    }
}

/// The merge patch (RFC 7386) that makes one value the other.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let other = to.iter().filter(|(key, value)| from.get(*key) != Some(value));
    let other = other
        .map(|(key, value)| (key.clone(), from.get(key).map_or_else(|| value.clone(), |old| difference(old, value))));
    Value::Object(gone.chain(other).collect())
}
