//! Kubernetes YAML in: which documents a person may bring to the lab, and how they change the
//! store. Every document is checked before the first is written.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use model::kubernetes::Service;
use model::objects::{Kind, Object};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::host;
use crate::kubelet;
use crate::store::{FileStore, Key};

/// Documents of one file.
pub const DOCUMENTS_MAX: usize = 1000;

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was there, and other.
    Configured,
    /// It was there, just so.
    Unchanged,
    /// It is gone, or will be when nobody holds it any more.
    Deleted,
}

impl Outcome {
    /// As kubectl says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
            Outcome::Deleted => "deleted",
        }
    }
}

/// One checked document.
#[derive(Clone, Debug)]
pub struct Document {
    key: Key,
    kind: Kind,
    value: Value,
}

impl Document {
    /// `service/web`, as kubectl names things.
    pub fn name(&self) -> String {
        format!("{}/{}", self.kind.as_str().to_lowercase(), self.key.name)
    }

    /// Whether an event is about this object.
    pub fn is_object_of(&self, event: &Value) -> bool {
        let object = &event["object"];
        object["kind"] == self.key.kind
            && object["name"] == self.key.name
            && object["namespace"] == self.key.namespace
    }
}

/// Reads all documents of a YAML (or JSON) text.
pub fn read(text: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (index, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let place = || format!("document {}", index + 1);
        let value = Value::deserialize(document).map_err(|error| anyhow!("{error}"));
        let value = value.with_context(|| format!("{} is not YAML", place()))?;
        if value.is_null() {
            continue;
        }
        let items = match value.get("kind").and_then(Value::as_str) {
            Some("List") => value.get("items").and_then(Value::as_array).cloned(),
            _ => Some(vec![value]),
        };
        for item in items.with_context(|| format!("{}: a List without items", place()))? {
            if documents.len() == DOCUMENTS_MAX {
                bail!("more than {DOCUMENTS_MAX} objects in one file");
            }
            documents.push(check(item).with_context(place)?);
        }
    }
    if documents.is_empty() {
        bail!("there is no object in the file");
    }
    Ok(documents)
}

fn check(mut value: Value) -> Result<Document> {
    if !value.is_object() {
        bail!("not an object, but {}", serde_json::to_string(&value).unwrap_or_default());
    }
    if let Some(name) = value.get("kind").and_then(Value::as_str)
        && Kind::from_name(name).is_none()
        && let Some(near) = host::near(name, Kind::ALL.map(Kind::as_str))
    {
        bail!("no kind {name:?} is known here: did you mean {near}?");
    }
    // A public address without spec is asked for with all defaults.
    if value.get("kind").and_then(Value::as_str) == Some("PublicIPAddress")
        && let Some(fields) = value.as_object_mut()
    {
        fields.entry("spec").or_insert_with(|| Value::Object(Map::new()));
        fields.remove("status");
    }
    let object = Object::from_json(value.clone())?;
    let kind = object.key().kind;
    match kind {
        Kind::Service
        | Kind::Node
        | Kind::ClusterNetwork
        | Kind::PublicIPPool
        | Kind::PublicIPAddress
        | Kind::PublicIPPrefix
        | Kind::NatGateway
        | Kind::RouteTable => {}
        Kind::LoadBalancer
        | Kind::NetworkSecurityGroup
        | Kind::NodeNetwork
        | Kind::MuxNetwork
        | Kind::PortInventory
        | Kind::WrapKeys => bail!("{kind} objects follow from others and are not written"),
        Kind::Pod | Kind::EndpointSlice => {
            bail!("the lab makes its {kind} objects itself: see --pods-per-node");
        }
    }
    if kind.is_namespaced() {
        let metadata = value["metadata"].as_object_mut().context("metadata is no object")?;
        metadata.entry("namespace").or_insert_with(|| kubelet::NAMESPACE.into());
    }
    let key = Key::of(&value)?;
    match object {
        Object::Service(service) => check_service(&service).with_context(|| key.to_string())?,
        Object::ClusterNetwork(_) if key.name != "default" => {
            bail!("{key}: the one that counts is called default");
        }
        _ => {}
    }
    Ok(Document { key, kind, value })
}

/// What an API server would refuse and the planner therefore never sees.
fn check_service(service: &Service) -> Result<()> {
    let spec = &service.spec;
    let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    let kind = spec.service_type.as_deref().unwrap_or("ClusterIP");
    if !kinds.contains(&kind) {
        let near = host::near(kind, kinds).map_or_else(String::new, |near| format!(": {near}?"));
        bail!("spec.type {kind:?} is not one of {}{near}", kinds.join(", "));
    }
    if spec.ports.is_empty() && kind != "ExternalName" {
        bail!("spec.ports is empty");
    }
    for (index, port) in spec.ports.iter().enumerate() {
        if !(1..=65535).contains(&port.port) {
            bail!("spec.ports[{index}].port {} is not 1 to 65535", port.port);
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            bail!("spec.ports[{index}].protocol {protocol:?} is not TCP, UDP or SCTP");
        }
        if spec.ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            bail!("spec.ports[{index}].name is missing: several ports need names");
        }
    }
    for range in &spec.load_balancer_source_ranges {
        let good = range.trim().parse::<ipnet::IpNet>().is_ok();
        if !good {
            bail!("spec.loadBalancerSourceRanges: {range:?} is no CIDR, like 198.51.100.0/24");
        }
    }
    if let Some(address) = &spec.load_balancer_ip
        && !address.is_empty()
        && address.parse::<IpAddr>().is_err()
    {
        bail!("spec.loadBalancerIP: {address:?} is no address");
    }
    Ok(())
}

/// Writes all documents; nothing, if one of them cannot be.
pub fn apply(store: &FileStore, documents: &[Document]) -> Result<Vec<Outcome>> {
    for document in documents.iter().filter(|document| document.kind == Kind::Node) {
        known_node(store, &document.key)?;
    }
    let outcomes = documents.iter().map(|document| apply_one(store, document)).collect();
    kubelet::publish_endpoints(store)?;
    outcomes
}

fn known_node(store: &FileStore, key: &Key) -> Result<()> {
    if store.get(key)?.is_some() {
        return Ok(());
    }
    let nodes = store.list("Node")?;
    let names: Vec<&str> =
        nodes.iter().filter_map(|node| node.pointer("/metadata/name")?.as_str()).collect();
    match host::near(&key.name, names.iter().copied()) {
        Some(near) => bail!("no node {:?} in the lab: did you mean {near}?", key.name),
        None => bail!("no node {:?} in the lab; there is {}", key.name, names.join(", ")),
    }
}

fn apply_one(store: &FileStore, document: &Document) -> Result<Outcome> {
    let mut document = document.clone();
    if document.kind == Kind::Service {
        fill_in(store, &document.key, &mut document.value)?;
    }
    let document = &document;
    let mut before = None;
    let after = store.change(&document.key, |object| {
        before = Some(object.clone());
        match document.kind {
            // A Node is its kubelet's; people add to it.
            Kind::Node => merge(object, &document.value),
            _ => replace(object, &document.value),
        }
        Ok(())
    })?;
    match after {
        Some(after) if Some(&after) == before.as_ref() => Ok(Outcome::Unchanged),
        Some(_) => Ok(Outcome::Configured),
        None => {
            store.put(bring(&document.value))?;
            Ok(Outcome::Created)
        }
    }
}

/// What an API server fills into a Service: its type and its node ports, which it keeps once they
/// are given.
fn fill_in(store: &FileStore, key: &Key, value: &mut Value) -> Result<()> {
    let read = |value: &Value| -> Result<Service> {
        serde_json::from_value(value.clone()).with_context(|| key.to_string())
    };
    let mut services = Vec::new();
    let mut old = None;
    for stored in store.list("Service")? {
        let service = read(&stored)?;
        if Key::of(&stored)? == *key {
            old = Some(service);
        } else {
            services.push(service);
        }
    }
    let mut new = read(value)?;
    new.metadata.uid = None;
    new.spec.service_type.get_or_insert_with(|| "ClusterIP".to_owned());
    if let Some(old) = old {
        for port in new.spec.ports.iter_mut().filter(|port| port.node_port.is_none()) {
            let same = old
                .spec
                .ports
                .iter()
                .find(|other| (other.port, &other.protocol) == (port.port, &port.protocol));
            port.node_port = same.and_then(|port| port.node_port);
        }
        if new.spec.health_check_node_port.is_none() {
            new.spec.health_check_node_port = old.spec.health_check_node_port;
        }
    }
    services.push(new);
    model::planner::defaults::fill(&mut services);
    let Some(filled) = services.pop() else { return Ok(()) };
    let spec = &mut value["spec"];
    spec["type"] = json!(filled.spec.service_type);
    for (index, port) in filled.spec.ports.iter().enumerate() {
        if let Some(node_port) = port.node_port {
            spec["ports"][index]["nodePort"] = json!(node_port);
        }
    }
    if let Some(port) = filled.spec.health_check_node_port
        && filled.spec.external_traffic_policy.as_deref() == Some("Local")
    {
        spec["healthCheckNodePort"] = json!(port);
    }
    Ok(())
}

/// What a person may say about an object; the rest is for those who work on it.
fn bring(value: &Value) -> Value {
    let mut object = value.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|field, _| {
            ["name", "namespace", "labels", "annotations"].contains(&field.as_str())
        });
    }
    object
}

fn replace(object: &mut Value, value: &Value) {
    object["spec"] = value.get("spec").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    for field in ["labels", "annotations"] {
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return;
        };
        match value.pointer(&format!("/metadata/{field}")) {
            Some(new) => drop(metadata.insert(field.to_owned(), new.clone())),
            None => drop(metadata.remove(field)),
        }
    }
}

fn merge(object: &mut Value, value: &Value) {
    for field in ["labels", "annotations"] {
        let new = value.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        for (key, text) in new.into_iter().flatten() {
            object["metadata"][field][key] = text.clone();
        }
    }
}

/// Deletes what the documents name. Of a Node, only the labels and annotations that they give.
pub fn delete(store: &FileStore, documents: &[Document]) -> Result<Vec<Outcome>> {
    for document in documents {
        if store.get(&document.key)?.is_none() {
            bail!("{} does not exist", document.key);
        }
        if document.kind == Kind::ClusterNetwork {
            bail!("{}: a lab without it is none; change it with `lab apply`", document.key);
        }
    }
    for document in documents {
        if document.kind == Kind::Node {
            store.change(&document.key, |object| {
                unmerge(object, &document.value);
                Ok(())
            })?;
        } else if document.kind == Kind::PublicIPAddress {
            withdraw_request(store, &document.key)?;
        } else {
            store.delete(&document.key)?;
        }
    }
    kubelet::publish_endpoints(store)?;
    Ok(vec![Outcome::Deleted; documents.len()])
}

/// Of a public address, a person's part is what was asked for; the controller lets the address go.
fn withdraw_request(store: &FileStore, key: &Key) -> Result<()> {
    let object = store.change(key, |object| {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("spec");
        }
        Ok(())
    })?;
    if object.is_some_and(|object| object.get("status").is_none()) {
        store.delete(key)?;
    }
    Ok(())
}

fn unmerge(object: &mut Value, value: &Value) {
    for field in ["labels", "annotations"] {
        let given = value.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        let Some(present) =
            object.pointer_mut(&format!("/metadata/{field}")).and_then(Value::as_object_mut)
        else {
            continue;
        };
        for key in given.into_iter().flatten().map(|(key, _)| key) {
            present.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                       spec:\n  type: LoadBalancer\n  selector: {app: web}\n  \
                       ports: [{port: 80}]\n";

    #[test]
    fn ordinary_kubernetes_yaml_is_read() {
        let text = format!("# two of them\n{WEB}---\n{}", WEB.replace("name: web", "name: shop"));
        let names: Vec<String> = read(&text).unwrap().iter().map(Document::name).collect();
        assert_eq!(names, ["service/web", "service/shop"]);
    }

    #[test]
    fn a_mistake_is_named_in_one_line_and_nothing_is_written() {
        for (text, expected) in [
            ("kind: [", "document 1 is not YAML"),
            ("just words", "not an object"),
            ("", "no object"),
            ("apiVersion: v1\nkind: Servce\nmetadata: {name: a}", "did you mean Service?"),
            (&WEB.replace("v1", "v2"), "apiVersion"),
            (&WEB.replace("{name: web}", "{}"), "metadata.name is empty"),
            (&WEB.replace("port: 80", "port: 99999"), "spec.ports[0].port 99999"),
            (&WEB.replace("LoadBalancer", "Loadbalancer"), "LoadBalancer?"),
            (&format!("{WEB}  loadBalancerSourceRanges: [everyone]\n"), "\"everyone\" is no CIDR"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "makes its Pod objects itself"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(expected), "{text:?} gives {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn applying_keeps_what_others_wrote_on_the_object() {
        let (_directory, store) = store();
        let documents = read(WEB).unwrap();
        assert_eq!(apply(&store, &documents).unwrap(), [Outcome::Created]);
        let key = Key::namespaced("Service", "default", "web");
        let status = serde_json::json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        store
            .change(&key, |service| {
                service["status"] = status.clone();
                service["metadata"]["finalizers"] = serde_json::json!(["kept"]);
                Ok(())
            })
            .unwrap();
        assert_eq!(apply(&store, &documents).unwrap(), [Outcome::Unchanged]);
        let other = read(&WEB.replace("port: 80", "port: 81")).unwrap();
        assert_eq!(apply(&store, &other).unwrap(), [Outcome::Configured]);
        let service = store.get(&key).unwrap().unwrap();
        assert_eq!(service["status"], status);
        assert_eq!(service["metadata"]["finalizers"], serde_json::json!(["kept"]));
        assert_eq!(service["spec"]["ports"][0]["port"], 81);
    }

    #[test]
    fn a_node_gets_annotations_and_loses_only_those() {
        let (_directory, store) = store();
        let kubelets = "{apiVersion: v1, kind: Node, metadata: {name: node1, labels: {a: b}}}";
        store.put(serde_norway::from_str(kubelets).unwrap()).unwrap();
        let text = "{apiVersion: v1, kind: Node, metadata: {name: node1, annotations: {c: d}}}";
        let documents = read(text).unwrap();
        assert_eq!(apply(&store, &documents).unwrap(), [Outcome::Configured]);
        let key = Key::cluster("Node", "node1");
        let node = store.get(&key).unwrap().unwrap();
        assert_eq!(node["metadata"]["annotations"], serde_json::json!({"c": "d"}));
        assert_eq!(node["metadata"]["labels"], serde_json::json!({"a": "b"}));
        delete(&store, &documents).unwrap();
        let node = store.get(&key).unwrap().unwrap();
        assert_eq!(node["metadata"]["annotations"], serde_json::json!({}));
        let unknown = read(&text.replace("node1", "node2")).unwrap();
        let error = apply(&store, &unknown).unwrap_err().to_string();
        assert_eq!(error, "no node \"node2\" in the lab: did you mean node1?");
    }

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::create(directory.path().join("objects")).unwrap();
        (directory, store)
    }
}
