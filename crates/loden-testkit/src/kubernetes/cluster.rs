//! What the double of the Kubernetes API keeps: objects with revisions and their history, as etcd and the API server keep them.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::schema::Schemas;

/// What the server answers instead: code, reason, message.
pub type Refusal = (u16, &'static str, String);

/// One line of history.
#[derive(Clone)]
pub struct Event {
    /// The revision that it is of.
    pub revision: u64,
    /// Of what.
    pub resource: String,
    /// What happened, in a watch's word.
    pub word: &'static str,
    /// The object behind it.
    pub object: Value,
}

/// All that there is.
#[derive(Default)]
pub struct Cluster {
    /// The last write's.
    pub revision: u64,
    objects: BTreeMap<(String, String), Value>,
    /// What happened since the last compaction.
    pub history: Vec<Event>,
    /// The oldest revision that a watch may begin behind.
    pub oldest: u64,
    schemas: Schemas,
    /// What is left of lists that are read page by page.
    pages: BTreeMap<String, (u64, VecDeque<Value>)>,
    made: u64,
    /// Whether `deploy/crds.yaml` was applied.
    pub has_crds: bool,
}

impl Cluster {
    /// One that has nothing but the namespace `kube-system`.
    #[must_use]
    pub fn new() -> Self {
        // A real one has had other writes before.
        let mut cluster =
            Self { revision: 1000, oldest: 1000, schemas: Schemas::shipped(), has_crds: true, ..Self::default() };
        let system = json!({"metadata": {"name": "kube-system"}});
        cluster.create("namespaces", system).expect("a namespace");
        cluster
    }

    /// One object.
    ///
    /// # Errors
    /// What the server says instead.
    pub fn get(&self, resource: &str, name: &str) -> Result<Value, Refusal> {
        let found = self.objects.get(&(resource.to_owned(), name.to_owned()));
        found.cloned().ok_or_else(|| (404, "NotFound", format!("{resource} \"{name}\" not found")))
    }

    /// A page of a list and what brings the next one.
    ///
    /// # Errors
    /// What the server says instead.
    pub fn list(
        &mut self,
        resource: &str,
        limit: Option<usize>,
        token: &str,
    ) -> Result<(Vec<Value>, u64, String), Refusal> {
        let (revision, mut left) = if token.is_empty() {
            let of = |((of, _), object): (&(String, String), &Value)| (of == resource).then(|| object.clone());
            (self.revision, self.objects.iter().filter_map(of).collect())
        } else {
            match self.pages.remove(token) {
                Some((revision, left)) if revision >= self.oldest => (revision, left),
                _ => return Err((410, "Expired", "The provided continue parameter is too old".to_owned())),
            }
        };
        let rest = left.split_off(limit.unwrap_or(usize::MAX).min(left.len()));
        let next = if rest.is_empty() { String::new() } else { format!("{revision}:{}/+", self.pages.len()) };
        if !rest.is_empty() {
            self.pages.insert(next.clone(), (revision, rest));
        }
        Ok((left.into(), revision, next))
    }

    /// Makes an object as the API server and admission leave it.
    ///
    /// # Errors
    /// What the server says instead.
    pub fn create(&mut self, resource: &str, mut object: Value) -> Result<Value, Refusal> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.get(resource, &name).is_ok() {
            return Err((409, "AlreadyExists", format!("{resource} \"{name}\" already exists")));
        }
        self.made += 1;
        let n = self.made;
        object["metadata"]["uid"] = format!("00000000-0000-4000-8000-{n:012}").into();
        object["metadata"]["creationTimestamp"] =
            format!("2026-01-01T{:02}:{:02}:{:02}Z", n / 3600, n / 60 % 60, n % 60).into();
        if resource != "nodes" && resource != "namespaces" {
            object.as_object_mut().expect("an object").remove("status");
        }
        self.write(resource, &name, "ADDED", object)
    }

    /// A merge patch, or a strategic one of conditions, of an object or its status.
    ///
    /// # Errors
    /// What the server says instead.
    pub fn patch(&mut self, resource: &str, name: &str, patch: &Value, part: Part) -> Result<Value, Refusal> {
        let former = self.get(resource, name)?;
        if let Some(expected) = patch["metadata"].get("resourceVersion")
            && *expected != former["metadata"]["resourceVersion"]
        {
            let message =
                format!("Operation cannot be fulfilled on {resource} \"{name}\": the object has been modified");
            return Err((409, "Conflict", message));
        }
        let mut object = former.clone();
        match part {
            Part::Conditions => {
                for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
                    put_condition(&mut object, condition);
                }
            }
            Part::Whole | Part::Status => merge(&mut object, patch),
        }
        // What the one way writes the other leaves alone.
        match part {
            Part::Whole if resource != "blocks" => object["status"] = former["status"].clone(),
            Part::Whole => {}
            Part::Status | Part::Conditions => object["spec"] = former["spec"].clone(),
        }
        if object["status"].is_null() {
            object.as_object_mut().expect("an object").remove("status");
        }
        if object == former {
            return Ok(former);
        }
        self.write(resource, name, "MODIFIED", object)
    }

    /// Removes an object, if it has the expected revision.
    ///
    /// # Errors
    /// What the server says instead.
    pub fn delete(&mut self, resource: &str, name: &str, expected: Option<&str>) -> Result<Value, Refusal> {
        let mut object = self.get(resource, name)?;
        if expected.is_some_and(|expected| object["metadata"]["resourceVersion"] != expected) {
            return Err((
                409,
                "Conflict",
                format!("the UID or ResourceVersion in the precondition of {name} is not met"),
            ));
        }
        self.objects.remove(&(resource.to_owned(), name.to_owned()));
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.tell(resource, "DELETED", object.clone());
        self.collect(&object["metadata"]["uid"]);
        Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
    }

    /// What Kubernetes' collector does: what belongs to an object goes with it.
    fn collect(&mut self, owner: &Value) {
        let belongs = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|reference| reference["uid"] == *owner)
        };
        let orphans: Vec<_> =
            self.objects.iter().filter(|(_, object)| belongs(object)).map(|(key, _)| key.clone()).collect();
        for (resource, name) in orphans {
            self.delete(&resource, &name, None).expect("it is there");
        }
    }

    /// Forgets history, as etcd does every five minutes.
    pub fn compact(&mut self) {
        self.oldest = self.revision;
        self.history.clear();
    }

    fn write(&mut self, resource: &str, name: &str, word: &'static str, mut object: Value) -> Result<Value, Refusal> {
        self.schemas
            .admit(resource, &mut object)
            .map_err(|cause| (422, "Invalid", format!("{name} is invalid: {cause}")))?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.objects.insert((resource.to_owned(), name.to_owned()), object.clone());
        self.tell(resource, word, object.clone());
        Ok(object)
    }

    fn tell(&mut self, resource: &str, word: &'static str, object: Value) {
        self.history.push(Event { revision: self.revision, resource: resource.to_owned(), word, object });
    }
}

/// What a patch is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object without its status.
    Whole,
    /// Its metadata and status.
    Status,
    /// Conditions of its status, each by its type.
    Conditions,
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let map = into.as_object_mut().expect("an object");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn put_condition(object: &mut Value, condition: &Value) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let all = object["status"]["conditions"].as_array_mut().expect("a list");
    match all.iter_mut().find(|other| other["type"] == condition["type"]) {
        Some(other) => merge(other, condition),
        None => all.push(condition.clone()),
    }
}
