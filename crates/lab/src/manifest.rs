//! Kubernetes YAML in: which documents a person may bring to the lab, and how they change the
//! store. Every document is checked before the first is written.

use anyhow::{Context, Result, anyhow, bail};
use model::kubernetes::Service;
use model::manifest::{self, Found, FoundKind};
use model::nearest::nearest;
use model::objects::{Kind, Object};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::kubelet;
use crate::store::{FileStore, Key};

/// Objects of one file.
pub const OBJECTS_MAX: usize = 1000;

/// Objects that cannot be taken, one line each: nothing was written.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct Refused(pub Vec<String>);

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

/// One document, of which it is known what it is about.
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

/// The documents of a text, and what is odd about it.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// In the order of the text.
    pub documents: Vec<Document>,
    /// One sentence each.
    pub odd: Vec<String>,
}

/// Reads all documents of a YAML or JSON text, as far as to know which objects they are about.
pub fn read(bytes: &[u8]) -> Result<Documents> {
    let manifest = manifest::read(bytes)?;
    if manifest.objects.is_empty() {
        bail!("there is no object in the file");
    }
    if manifest.objects.len() > OBJECTS_MAX {
        bail!("more than {OBJECTS_MAX} objects in one file");
    }
    let mut refused = Vec::new();
    let mut documents = Vec::new();
    for found in manifest.objects {
        let place = found.place.clone();
        match identify(found) {
            Ok(document) => documents.push(document),
            Err(error) => refused.push(format!("{place}: {error:#}")),
        }
    }
    if refused.is_empty() {
        Ok(Documents { documents, odd: manifest.odd })
    } else {
        Err(Refused(refused).into())
    }
}

fn identify(found: Found) -> Result<Document> {
    let mut value = found.value;
    let kind = match found.kind {
        FoundKind::Known(kind) => kind,
        FoundKind::Other(name) => bail!(match nearest(&name, Kind::ALL.map(Kind::as_str)) {
            Some(near) if near != name =>
                format!("no kind {name:?} is known here: did you mean {near}?"),
            _ => format!("kind {name:?} of {} is not known here", value["apiVersion"]),
        }),
        FoundKind::OtherVersion { kind, found } => {
            bail!("{kind}: apiVersion {found:?} is not {:?}", kind.api_version())
        }
        FoundKind::Shaped(_) | FoundKind::Missing => bail!("the document has no `kind`"),
    };
    if value["apiVersion"] != kind.api_version() {
        bail!("{kind}: apiVersion is missing: write {}", kind.api_version());
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        bail!("{kind}: metadata.name is empty");
    }
    let metadata = value["metadata"].as_object_mut().context("metadata is no object")?;
    let namespace = metadata.remove("namespace");
    if kind.is_namespaced() {
        let namespace = namespace.filter(|name| !name.is_null() && name != "");
        let namespace = namespace.unwrap_or_else(|| kubelet::NAMESPACE.into());
        metadata.insert("namespace".into(), namespace);
    }
    Ok(Document { key: Key::of(&value)?, kind, value })
}

/// What of the documents is ignored, one sentence each. Refused is what an API server would not
/// take, and what a person has no business to write.
pub fn check(documents: &[Document]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut refused = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let key = &document.key;
        if documents[..index].iter().any(|earlier| earlier.key == *key) {
            refused.push(format!("{key}: is there twice: remove one of the two"));
            continue;
        }
        match check_one(document) {
            Ok(more) => warnings.extend(more.into_iter().map(|one| format!("{key}: {one}"))),
            Err(error) => refused.push(format!("{key}: {error:#}")),
        }
    }
    if refused.is_empty() { Ok(warnings) } else { Err(Refused(refused).into()) }
}

fn check_one(document: &Document) -> Result<Vec<String>> {
    let (kind, value) = (document.kind, &document.value);
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
    let warnings = manifest::check(kind, value).map_err(|error| anyhow!(error.why))?;
    Object::from_json(brought(document))?;
    if kind == Kind::ClusterNetwork && document.key.name != "default" {
        bail!("the one that counts is called default");
    }
    Ok(warnings)
}

/// The object as a person says it. A public address without spec is asked for with all defaults.
fn brought(document: &Document) -> Value {
    let mut value = document.value.clone();
    if document.kind == Kind::PublicIPAddress
        && let Some(fields) = value.as_object_mut()
    {
        if fields.get("spec").is_none_or(Value::is_null) {
            fields.insert("spec".into(), Value::Object(Map::new()));
        }
        fields.remove("status");
    }
    value
}

/// Writes all documents, which [`check`] has found good; nothing, if one of them cannot be.
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
    match nearest(&key.name, names.iter().copied()) {
        Some(near) => bail!("no node {:?} in the lab: did you mean {near}?", key.name),
        None => bail!("no node {:?} in the lab; there is {}", key.name, names.join(", ")),
    }
}

fn apply_one(store: &FileStore, document: &Document) -> Result<Outcome> {
    let mut document = Document { value: brought(document), ..document.clone() };
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
        manifest::reread(value).map_err(|error| anyhow!("{key}: {error}"))
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
                .find(|other| (other.port, other.protocol()) == (port.port, port.protocol()));
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
        let names: Vec<String> = documents(&text).iter().map(Document::name).collect();
        assert_eq!(names, ["service/web", "service/shop"]);
    }

    #[test]
    fn a_mistake_is_named_in_one_line_and_nothing_is_written() {
        for (text, expected) in [
            ("kind: [", "not YAML: line 2"),
            ("just words", "not an object"),
            ("", "no object"),
            ("apiVersion: v1\nkind: Servce\nmetadata: {name: a}", "did you mean Service?"),
            (&WEB.replace("v1", "v2"), "apiVersion"),
            (&WEB.replace("{name: web}", "{}"), "metadata.name is empty"),
            (&WEB.replace("port: 80", "port: 99999"), "spec.ports[0].port: Invalid value: 99999"),
            (
                &WEB.replace("LoadBalancer", "Loadbalancer"),
                "spec.type: Unsupported value: \"Loadbalancer\"",
            ),
            (&format!("{WEB}  loadBalancerSourceRanges: [everyone]\n"), "everyone"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "makes its Pod objects itself"),
        ] {
            let read = read(text.as_bytes()).and_then(|read| check(&read.documents));
            let error = format!("{:#}", read.unwrap_err());
            assert!(error.contains(expected), "{text:?} gives {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn what_kubectl_reads_is_taken_and_deleted_by_kind_and_name() {
        let (_directory, store) = store();
        let list = "\u{feff}apiVersion: v1\r\nkind: ServiceList\r\nitems:\r\n\
                    - metadata: {name: a}\r\n  \
                      spec: {<<: {type: LoadBalancer}, ports: [{port: 80, nodePort: 0}]}\r\n";
        let utf16: Vec<u8> = list.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [list.as_bytes(), &utf16] {
            let list = read(bytes).unwrap().documents;
            check(&list).unwrap();
            apply(&store, &list).unwrap();
            let key = Key::namespaced("Service", "default", "a");
            let service = store.get(&key).unwrap().unwrap();
            assert_eq!(service["spec"]["type"], "LoadBalancer");
            assert!(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30_000);
            for namespace in ["", ", namespace: default", ", namespace: ''", ", namespace: null"] {
                let text =
                    format!("{{apiVersion: v1, kind: Service, metadata: {{name: a{namespace}}}}}");
                let named = read(text.as_bytes()).unwrap().documents;
                assert_eq!(delete(&store, &named).unwrap(), [Outcome::Deleted]);
                assert_eq!(store.get(&key).unwrap(), None);
                apply(&store, &list).unwrap();
            }
        }
    }

    #[test]
    fn all_that_is_refused_is_named_at_once() {
        let wrong = WEB.replace("80", "0").replace("LoadBalancer", "loadbalancer");
        let text = format!("{WEB}---\n{WEB}---\n{}", wrong.replace("name: web", "name: shop"));
        let read = read(text.as_bytes()).unwrap();
        let Refused(lines) = check(&read.documents).unwrap_err().downcast().unwrap();
        let [twice, wrong] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(twice, "Service default/web: is there twice: remove one of the two");
        assert!(wrong.starts_with("Service default/shop: spec."), "{wrong}");
    }

    #[test]
    fn applying_keeps_what_others_wrote_on_the_object() {
        let (_directory, store) = store();
        let documents = documents(WEB);
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
        let other = self::documents(&WEB.replace("port: 80", "port: 81"));
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
        let documents = documents(text);
        assert_eq!(apply(&store, &documents).unwrap(), [Outcome::Configured]);
        let key = Key::cluster("Node", "node1");
        let node = store.get(&key).unwrap().unwrap();
        assert_eq!(node["metadata"]["annotations"], serde_json::json!({"c": "d"}));
        assert_eq!(node["metadata"]["labels"], serde_json::json!({"a": "b"}));
        delete(&store, &documents).unwrap();
        let node = store.get(&key).unwrap().unwrap();
        assert_eq!(node["metadata"]["annotations"], serde_json::json!({}));
        let unknown = self::documents(&text.replace("node1", "node2"));
        let error = apply(&store, &unknown).unwrap_err().to_string();
        assert_eq!(error, "no node \"node2\" in the lab: did you mean node1?");
    }

    fn documents(text: &str) -> Vec<Document> {
        let documents = read(text.as_bytes()).unwrap().documents;
        check(&documents).unwrap();
        documents
    }

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::create(directory.path().join("objects")).unwrap();
        (directory, store)
    }
}
