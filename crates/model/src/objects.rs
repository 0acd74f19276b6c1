//! A snapshot of everything the brains read, and the objects that it consists of.
//!
//! Every object has the shape of Kubernetes: `apiVersion`, `kind`, `metadata`, `spec`, `status`.
//! Resources ([`crate::resources`]) stand in the `spec` of an object of their kind, as they are;
//! a public IP stands in the `status` of its `PublicIPAddress`, because its `spec` is what a
//! person asked for, and is absent where nobody did.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::cluster::{self, ClusterNetwork, ClusterNetworkSpec, PublicIPPool};
pub use crate::kind::Kind;
use crate::kubernetes::{Node, ObjectMeta, Service};
use crate::manifest;
use crate::pods::{EndpointSlice, Pod};
use crate::resources::{
    LoadBalancer, NatGateway, NetworkSecurityGroup, PublicIPAddress, PublicIPPrefix, Resources,
    RouteTable,
};
use crate::runtime::{MuxNetwork, NodeNetwork, PortInventory};
use crate::wrap_keys::WrapKeys;

/// Everything that exists, by kind and name. Namespaced objects are found by `namespace/name`,
/// resources by their name in lower case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// How the cluster reaches the outside; what counts is the one called `default`.
    pub cluster_networks: BTreeMap<String, ClusterNetwork>,
    /// The region's addresses.
    pub public_ip_pools: BTreeMap<String, PublicIPPool>,
    /// Public addresses that somebody asked for by name.
    pub public_ip_requests: BTreeMap<String, cluster::PublicIPAddress>,
    /// The resources.
    pub resources: Resources,
    /// Services.
    pub services: BTreeMap<String, Service>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Pods.
    pub pods: BTreeMap<String, Pod>,
    /// Which pods serve which Service.
    pub endpoint_slices: BTreeMap<String, EndpointSlice>,
    /// What each node holds and runs.
    pub node_networks: BTreeMap<String, NodeNetwork>,
    /// The muxes.
    pub mux_networks: BTreeMap<String, MuxNetwork>,
    /// What nobody holds; what counts is the one called `default`.
    pub port_inventories: BTreeMap<String, PortInventory>,
    /// Keys of wrapped packets; what counts is the one called `default`.
    pub wrap_keys: BTreeMap<String, WrapKeys>,
}

/// Name of the objects of which there is one.
pub const DEFAULT: &str = "default";

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The object of `kind` whose key in [`Objects`] is `key`.
    pub fn new(kind: Kind, key: &str) -> ObjectKey {
        let (namespace, name) = match (kind.is_namespaced(), key.split_once('/')) {
            (true, Some((namespace, name))) => (namespace, name),
            (true, None) => (DEFAULT, key),
            (false, _) => ("", key),
        };
        ObjectKey { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Why a document is not an object.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It does not say what it is.
    #[error("the document has no `kind`")]
    NoKind,
    /// It is something that nobody here reads.
    #[error("kind {0:?} is not one of those known here")]
    UnknownKind(String),
    /// It is of another version.
    #[error("{kind}: apiVersion {found:?} is not {expected:?}")]
    ApiVersion {
        /// The kind.
        kind: Kind,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// It has no name.
    #[error("{0}: metadata.name is empty")]
    NoName(Kind),
    /// A field has the wrong form.
    #[error("{kind} {name}: {error}")]
    Field {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// What is wrong.
        error: String,
    },
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the kind of its content")]
pub enum Object {
    ClusterNetwork(ClusterNetwork),
    PublicIPPool(PublicIPPool),
    PublicIPAddress(PublicIPObject),
    PublicIPPrefix(PublicIPPrefix),
    LoadBalancer(LoadBalancer),
    NatGateway(NatGateway),
    NetworkSecurityGroup(NetworkSecurityGroup),
    RouteTable(RouteTable),
    NodeNetwork(NodeNetwork),
    MuxNetwork(MuxNetwork),
    PortInventory(PortInventory),
    WrapKeys(WrapKeys),
    Service(Service),
    Node(Node),
    Pod(Pod),
    EndpointSlice(EndpointSlice),
}

/// A public address: what a person asked for, and the resource that exists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PublicIPObject {
    /// Its name.
    pub name: String,
    /// What somebody asked for; absent for an address that belongs to a Service or the cluster.
    pub request: Option<cluster::PublicIPAddress>,
    /// What there is.
    pub resource: Option<PublicIPAddress>,
}

fn read<T: DeserializeOwned>(kind: Kind, name: &str, value: Value) -> Result<T, ObjectError> {
    let read = manifest::reread(&value);
    read.map_err(|error| ObjectError::Field { kind, name: name.to_owned(), error })
}

fn write<T: Serialize>(value: &T) -> Value {
    // Only maps with keys that are no strings fail, and there are none.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

impl Object {
    /// Reads an object from its JSON form.
    pub fn from_json(document: Value) -> Result<Object, ObjectError> {
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = match text("kind") {
            "" => return Err(ObjectError::NoKind),
            name => Kind::from_name(name).ok_or_else(|| ObjectError::UnknownKind(name.into()))?,
        };
        if text("apiVersion") != kind.api_version() {
            let found = text("apiVersion").to_owned();
            return Err(ObjectError::ApiVersion { kind, found, expected: kind.api_version() });
        }
        let name = document
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if name.is_empty() {
            return Err(ObjectError::NoName(kind));
        }
        let resource = |document: &Value| {
            let mut spec = document.get("spec").cloned().unwrap_or_else(|| json!({}));
            if let Some(fields) = spec.as_object_mut() {
                fields.entry("name").or_insert_with(|| json!(name));
            }
            spec
        };
        Ok(match kind {
            Kind::ClusterNetwork => Object::ClusterNetwork(read(kind, &name, document)?),
            Kind::PublicIPPool => Object::PublicIPPool(read(kind, &name, document)?),
            Kind::PublicIPAddress => {
                let status = document.get("status").cloned().filter(|status| !status.is_null());
                let resource = status.map(|status| read(kind, &name, status)).transpose()?;
                let request = document
                    .get("spec")
                    .is_some_and(|spec| !spec.is_null())
                    .then(|| read(kind, &name, document.clone()))
                    .transpose()?;
                Object::PublicIPAddress(PublicIPObject { name, request, resource })
            }
            Kind::PublicIPPrefix => Object::PublicIPPrefix(read(kind, &name, resource(&document))?),
            Kind::LoadBalancer => Object::LoadBalancer(read(kind, &name, resource(&document))?),
            Kind::NatGateway => Object::NatGateway(read(kind, &name, resource(&document))?),
            Kind::NetworkSecurityGroup => {
                Object::NetworkSecurityGroup(read(kind, &name, resource(&document))?)
            }
            Kind::RouteTable => Object::RouteTable(read(kind, &name, resource(&document))?),
            Kind::NodeNetwork => Object::NodeNetwork(read(kind, &name, document)?),
            Kind::MuxNetwork => Object::MuxNetwork(read(kind, &name, document)?),
            Kind::PortInventory => Object::PortInventory(read(kind, &name, document)?),
            Kind::WrapKeys => Object::WrapKeys(read(kind, &name, document)?),
            Kind::Service => Object::Service(read(kind, &name, document)?),
            Kind::Node => Object::Node(read(kind, &name, document)?),
            Kind::Pod => Object::Pod(read(kind, &name, document)?),
            Kind::EndpointSlice => Object::EndpointSlice(read(kind, &name, document)?),
        })
    }

    /// The object's JSON form.
    pub fn to_json(&self) -> Value {
        let resource = |name: &str, resource: Value| {
            let name = name.to_lowercase();
            json!({"metadata": {"name": name}, "spec": resource})
        };
        let body = match self {
            Object::ClusterNetwork(object) => write(object),
            Object::PublicIPPool(object) => write(object),
            Object::PublicIPAddress(object) => {
                let mut body = match &object.request {
                    Some(request) => write(request),
                    None => json!({"metadata": {"name": object.name.to_lowercase()}}),
                };
                if let (Some(fields), Some(resource)) = (body.as_object_mut(), &object.resource) {
                    fields.insert("status".into(), write(resource));
                }
                body
            }
            Object::PublicIPPrefix(object) => resource(&object.name, write(object)),
            Object::LoadBalancer(object) => resource(&object.name, write(object)),
            Object::NatGateway(object) => resource(&object.name, write(object)),
            Object::NetworkSecurityGroup(object) => resource(&object.name, write(object)),
            Object::RouteTable(object) => resource(&object.name, write(object)),
            Object::NodeNetwork(object) => write(object),
            Object::MuxNetwork(object) => write(object),
            Object::PortInventory(object) => write(object),
            Object::WrapKeys(object) => write(object),
            Object::Service(object) => write(object),
            Object::Node(object) => write(object),
            Object::Pod(object) => write(object),
            Object::EndpointSlice(object) => write(object),
        };
        let key = self.key();
        let mut document = Map::new();
        document.insert("apiVersion".into(), json!(key.kind.api_version()));
        document.insert("kind".into(), json!(key.kind.as_str()));
        if let Value::Object(fields) = body {
            document.extend(fields);
        }
        Value::Object(document)
    }

    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        fn of(kind: Kind, meta: &ObjectMeta) -> ObjectKey {
            match kind.is_namespaced() {
                true => ObjectKey::new(kind, &meta.key()),
                false => ObjectKey::new(kind, &meta.name),
            }
        }
        let resource = |kind, name: &str| ObjectKey::new(kind, &name.to_lowercase());
        match self {
            Object::ClusterNetwork(object) => of(Kind::ClusterNetwork, &object.metadata),
            Object::PublicIPPool(object) => of(Kind::PublicIPPool, &object.metadata),
            Object::PublicIPAddress(object) => resource(Kind::PublicIPAddress, &object.name),
            Object::PublicIPPrefix(object) => resource(Kind::PublicIPPrefix, &object.name),
            Object::LoadBalancer(object) => resource(Kind::LoadBalancer, &object.name),
            Object::NatGateway(object) => resource(Kind::NatGateway, &object.name),
            Object::NetworkSecurityGroup(object) => {
                resource(Kind::NetworkSecurityGroup, &object.name)
            }
            Object::RouteTable(object) => resource(Kind::RouteTable, &object.name),
            Object::NodeNetwork(object) => of(Kind::NodeNetwork, &object.metadata),
            Object::MuxNetwork(object) => of(Kind::MuxNetwork, &object.metadata),
            Object::PortInventory(object) => of(Kind::PortInventory, &object.metadata),
            Object::WrapKeys(object) => of(Kind::WrapKeys, &object.metadata),
            Object::Service(object) => of(Kind::Service, &object.metadata),
            Object::Node(object) => of(Kind::Node, &object.metadata),
            Object::Pod(object) => of(Kind::Pod, &object.metadata),
            Object::EndpointSlice(object) => of(Kind::EndpointSlice, &object.metadata),
        }
    }
}

impl Objects {
    /// What is wanted of the cluster's network; the defaults where nobody said anything.
    pub fn cluster(&self) -> ClusterNetworkSpec {
        self.cluster_networks.get(DEFAULT).map(|network| network.spec.clone()).unwrap_or_default()
    }

    /// The books of what nobody holds.
    pub fn inventory(&self) -> PortInventory {
        self.port_inventories.get(DEFAULT).cloned().unwrap_or_else(|| PortInventory {
            metadata: ObjectMeta { name: DEFAULT.into(), ..ObjectMeta::default() },
            ..PortInventory::default()
        })
    }

    /// Adds or replaces an object.
    pub fn insert(&mut self, object: Object) {
        let ObjectKey { namespace, name, .. } = object.key();
        let namespaced = format!("{namespace}/{name}");
        let resources = &mut self.resources;
        match object {
            Object::ClusterNetwork(object) => drop(self.cluster_networks.insert(name, object)),
            Object::PublicIPPool(object) => drop(self.public_ip_pools.insert(name, object)),
            Object::PublicIPAddress(object) => {
                match object.request {
                    Some(request) => drop(self.public_ip_requests.insert(name.clone(), request)),
                    None => drop(self.public_ip_requests.remove(&name)),
                }
                match object.resource {
                    Some(resource) => drop(resources.public_ip_addresses.insert(name, resource)),
                    None => drop(resources.public_ip_addresses.remove(&name)),
                }
            }
            Object::PublicIPPrefix(object) => {
                drop(resources.public_ip_prefixes.insert(name, object));
            }
            Object::LoadBalancer(object) => drop(resources.load_balancers.insert(name, object)),
            Object::NatGateway(object) => drop(resources.nat_gateways.insert(name, object)),
            Object::NetworkSecurityGroup(object) => {
                drop(resources.network_security_groups.insert(name, object));
            }
            Object::RouteTable(object) => drop(resources.route_tables.insert(name, object)),
            Object::NodeNetwork(object) => drop(self.node_networks.insert(name, object)),
            Object::MuxNetwork(object) => drop(self.mux_networks.insert(name, object)),
            Object::PortInventory(object) => drop(self.port_inventories.insert(name, object)),
            Object::WrapKeys(object) => drop(self.wrap_keys.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(namespaced, object)),
            Object::Node(object) => drop(self.nodes.insert(name, object)),
            Object::Pod(object) => drop(self.pods.insert(namespaced, object)),
            Object::EndpointSlice(object) => {
                drop(self.endpoint_slices.insert(namespaced, object));
            }
        }
    }

    /// Removes an object; whether there was one.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let (name, resources) = (&key.name, &mut self.resources);
        let namespaced = format!("{}/{name}", key.namespace);
        match key.kind {
            Kind::ClusterNetwork => self.cluster_networks.remove(name).is_some(),
            Kind::PublicIPPool => self.public_ip_pools.remove(name).is_some(),
            Kind::PublicIPAddress => {
                let requested = self.public_ip_requests.remove(name).is_some();
                resources.public_ip_addresses.remove(name).is_some() || requested
            }
            Kind::PublicIPPrefix => resources.public_ip_prefixes.remove(name).is_some(),
            Kind::LoadBalancer => resources.load_balancers.remove(name).is_some(),
            Kind::NatGateway => resources.nat_gateways.remove(name).is_some(),
            Kind::NetworkSecurityGroup => resources.network_security_groups.remove(name).is_some(),
            Kind::RouteTable => resources.route_tables.remove(name).is_some(),
            Kind::NodeNetwork => self.node_networks.remove(name).is_some(),
            Kind::MuxNetwork => self.mux_networks.remove(name).is_some(),
            Kind::PortInventory => self.port_inventories.remove(name).is_some(),
            Kind::WrapKeys => self.wrap_keys.remove(name).is_some(),
            Kind::Service => self.services.remove(&namespaced).is_some(),
            Kind::Node => self.nodes.remove(name).is_some(),
            Kind::Pod => self.pods.remove(&namespaced).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(&namespaced).is_some(),
        }
    }

    /// The object with this key.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        let name = match key.kind {
            Kind::Service | Kind::Pod | Kind::EndpointSlice => {
                format!("{}/{}", key.namespace, key.name)
            }
            _ => key.name.clone(),
        };
        self.select(key.kind, Select::Named(&name)).pop()
    }

    /// All objects of one kind, by name.
    pub fn all_of(&self, kind: Kind) -> Vec<Object> {
        self.select(kind, Select::All)
    }

    /// Objects of one kind that `other` does not have, or has otherwise.
    pub fn unlike(&self, other: &Objects, kind: Kind) -> Vec<Object> {
        self.select(kind, Select::Unlike(other))
    }

    fn select(&self, kind: Kind, select: Select<'_>) -> Vec<Object> {
        macro_rules! list {
            ($($field:ident).+, $wrap:path) => {
                match select {
                    Select::All => self.$($field).+.values().cloned().map($wrap).collect(),
                    Select::Named(name) => {
                        self.$($field).+.get(name).cloned().map($wrap).into_iter().collect()
                    }
                    Select::Unlike(other) => {
                        let is_unlike =
                            |(key, value): &(_, _)| other.$($field).+.get(*key) != Some(*value);
                        let unlike = self.$($field).+.iter().filter(is_unlike);
                        unlike.map(|(_, value)| $wrap(value.clone())).collect()
                    }
                }
            };
        }
        match kind {
            Kind::ClusterNetwork => list!(cluster_networks, Object::ClusterNetwork),
            Kind::PublicIPPool => list!(public_ip_pools, Object::PublicIPPool),
            Kind::PublicIPAddress => {
                let mut objects = self.public_ip_objects();
                match select {
                    Select::All => {}
                    Select::Named(name) => objects.retain(|object| object.key().name == name),
                    Select::Unlike(other) => {
                        let others = other.public_ip_objects();
                        objects.retain(|object| !others.contains(object));
                    }
                }
                objects
            }
            Kind::PublicIPPrefix => list!(resources.public_ip_prefixes, Object::PublicIPPrefix),
            Kind::LoadBalancer => list!(resources.load_balancers, Object::LoadBalancer),
            Kind::NatGateway => list!(resources.nat_gateways, Object::NatGateway),
            Kind::NetworkSecurityGroup => {
                list!(resources.network_security_groups, Object::NetworkSecurityGroup)
            }
            Kind::RouteTable => list!(resources.route_tables, Object::RouteTable),
            Kind::NodeNetwork => list!(node_networks, Object::NodeNetwork),
            Kind::MuxNetwork => list!(mux_networks, Object::MuxNetwork),
            Kind::PortInventory => list!(port_inventories, Object::PortInventory),
            Kind::WrapKeys => list!(wrap_keys, Object::WrapKeys),
            Kind::Service => list!(services, Object::Service),
            Kind::Node => list!(nodes, Object::Node),
            Kind::Pod => list!(pods, Object::Pod),
            Kind::EndpointSlice => list!(endpoint_slices, Object::EndpointSlice),
        }
    }

    fn public_ip_objects(&self) -> Vec<Object> {
        let mut objects: BTreeMap<String, PublicIPObject> = BTreeMap::new();
        for (name, request) in &self.public_ip_requests {
            let object = objects.entry(name.clone()).or_default();
            object.name = name.clone();
            object.request = Some(request.clone());
        }
        for (name, resource) in &self.resources.public_ip_addresses {
            let object = objects.entry(name.clone()).or_default();
            object.name = name.clone();
            object.resource = Some(resource.clone());
        }
        objects.into_values().map(Object::PublicIPAddress).collect()
    }
}

/// Which objects of a kind.
#[derive(Clone, Copy)]
enum Select<'a> {
    All,
    Named(&'a str),
    Unlike(&'a Objects),
}
