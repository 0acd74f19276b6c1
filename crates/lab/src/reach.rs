//! How the controller, the agents and the muxes reach the lab's store: what they read is a
//! snapshot, what they write are single objects, and what they have acted on is noted, so that
//! [`crate::ready`] knows when a change is in force.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use model::lease::Millis;
use model::objects::{Kind, Object, ObjectKey, Objects};
use model::reconcile::Event;
use model::runtime::{MuxNetworkStatus, NodeNetworkStatus};
use model::shortage;
use node::source::{News, Refused};
use serde_json::{Value, json};

use crate::host::Host;
use crate::store::{self, FileStore, Key, Watch};
use crate::view;

/// One process's way to the store.
pub struct Reach {
    store: FileStore,
    watch: Watch,
    reader: String,
    /// Number of the latest news that the last snapshot has.
    read: u64,
    /// Objects written since then: the version that was read, and the one that was made of it.
    written: BTreeMap<Key, (Value, Value)>,
}

impl Reach {
    /// The way of the process called `reader`.
    pub fn new(store: FileStore, reader: String) -> Result<Reach> {
        let watch = store.watch()?;
        Ok(Reach { store, watch, reader, read: 0, written: BTreeMap::new() })
    }

    fn snapshot(&mut self) -> Result<Objects> {
        // Before the objects: a write between the two is looked at again.
        self.read = self.store.news();
        self.written.clear();
        view::whole_snapshot(&self.store)
    }

    /// Who waits has acted on all that it read.
    fn rest(&mut self, timeout: Duration) -> Result<bool> {
        self.store.mark_seen(&self.reader, self.read)?;
        if self.store.news() != self.read {
            return Ok(true);
        }
        self.watch.wait(timeout)
    }

    fn write_status(&self, kind: Kind, name: &str, status: Value) -> Result<()> {
        let key = Key::cluster(kind.as_str(), name);
        let written = self.store.change(&key, |object| {
            object["status"] = status;
            Ok(())
        })?;
        written.map(|_| ()).with_context(|| format!("{key} does not exist"))
    }
}

fn key_of(key: &ObjectKey) -> Key {
    Key::namespaced(key.kind.as_str(), &key.namespace, &key.name)
}

impl controller::Store for Reach {
    type Error = anyhow::Error;

    fn list(&mut self) -> Result<Objects> {
        self.snapshot()
    }

    fn put(&mut self, object: &Object) -> Result<()> {
        let mut new = object.to_json();
        let key = key_of(&object.key());
        let old = self.store.get(&key)?;
        if let (Some(old), Some(fields)) = (&old, new.as_object_mut()) {
            match old.get("status") {
                Some(status) => drop(fields.insert("status".to_owned(), status.clone())),
                None => drop(fields.remove("status")),
            }
            // The model reads a part of what a person may write; the rest is not its to drop.
            let is_foreign = matches!(object, Object::Service(_) | Object::ClusterNetwork(_));
            if is_foreign && let Some(spec) = old.get("spec") {
                let mut merged = spec.clone();
                merge(&mut merged, &new["spec"]);
                new["spec"] = merged;
            }
            // What was just read is what this is based on, unless the object says otherwise.
            if new.pointer("/metadata/resourceVersion").is_none() {
                new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            }
        }
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        // A second write of the same turn is based on the first.
        if let Some((read, made)) = self.written.get(&key)
            && *read == version(&new)
        {
            new["metadata"]["resourceVersion"] = made.clone();
        }
        let read = version(&object.to_json());
        let made = version(&self.store.put(new)?);
        self.written.insert(key, (read, made));
        Ok(())
    }

    fn put_status(&mut self, object: &Object) -> Result<()> {
        let key = key_of(&object.key());
        let status = object.to_json()["status"].take();
        let mut read = None;
        let written = self.store.change(&key, |object| {
            read = Some(object["metadata"]["resourceVersion"].clone());
            match (status.is_null(), object.as_object_mut()) {
                (true, Some(fields)) => drop(fields.remove("status")),
                _ => object["status"] = status,
            }
            Ok(())
        })?;
        let written = written.with_context(|| format!("{key} does not exist"))?;
        let made = written["metadata"]["resourceVersion"].clone();
        self.written.insert(key, (read.unwrap_or_default(), made));
        Ok(())
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<()> {
        self.store.delete(&key_of(key)).map(|_| ())
    }

    fn record(&mut self, event: &Event, now: Millis) -> Result<()> {
        self.store.record(&json!({
            "object": {
                "kind": event.object.kind.as_str(),
                "namespace": event.object.namespace,
                "name": event.object.name,
            },
            "type": if event.is_warning { "Warning" } else { "Normal" },
            "reason": event.reason,
            "message": event.message,
            "time": store::timestamp(i64::try_from(now.0 / 1000).unwrap_or(0)),
        }))
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.rest(timeout).map(|_| ())
    }
}

impl node::source::Source for Reach {
    fn objects(&mut self) -> Result<Objects> {
        self.snapshot()
    }

    fn wait(&mut self, timeout: Duration) -> Result<bool> {
        self.rest(timeout)
    }

    fn report_node(&mut self, node: &str, status: &NodeNetworkStatus) -> Result<()> {
        self.write_status(Kind::NodeNetwork, node, serde_json::to_value(status)?)
    }

    fn report_mux(&mut self, mux: &str, status: &MuxNetworkStatus) -> Result<()> {
        self.write_status(Kind::MuxNetwork, mux, serde_json::to_value(status)?)
    }

    fn report_news(&mut self, machine: &str, news: &News) -> Result<()> {
        let kind = match machine.parse() {
            Ok(Host::Mux(_)) => Kind::MuxNetwork,
            _ => Kind::Node,
        };
        self.store.record(&json!({
            "object": {"kind": kind.as_str(), "namespace": "", "name": machine},
            "type": "Warning",
            "reason": news.reason,
            "message": news.message,
            "time": store::now(),
        }))
    }

    fn report_refused(&mut self, node: &str, refused: &[Refused]) -> Result<()> {
        let objects = view::snapshot(&self.store)?;
        for refused in refused {
            let (reason, message, times) = match *refused {
                Refused::Ports { target, port, protocol, refused } => (
                    "PortsExhausted",
                    shortage::of_ports(&objects, node, target, port, protocol),
                    refused,
                ),
                Refused::Quota { source, refused } => {
                    ("QuotaExceeded", shortage::of_quota(&objects, node, source), refused)
                }
            };
            self.store.record(&json!({
                "object": {"kind": "Node", "namespace": "", "name": node},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "refused": times,
                "time": store::now(),
            }))?;
        }
        Ok(())
    }
}

/// Puts every field of `new` into `old`, object by object.
fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new.clone(),
    }
}
