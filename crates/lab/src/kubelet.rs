//! Plays those parts of Kubernetes that make objects about machines: kubelets (Nodes, Pods), the
//! endpointslice controller, and whoever sets up muxes and address pools.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use model::cluster::OutboundType;
use model::kubernetes::Service;
use model::objects::Objects;
use model::pods::{self, Pod};
use serde_json::{Value, json};

use crate::host::{self, Host};
use crate::store::{FileStore, Key};
use crate::wiring::Settings;

/// Namespace of the lab's pods.
pub const NAMESPACE: &str = "default";
/// Label that all pods of the lab have: `app: web`.
pub const APP_LABEL: (&str, &str) = ("app", "web");
/// apiVersion of the product's own kinds.
const OWN: &str = model::cluster::API_VERSION;

/// Writes the objects of a new lab.
pub fn populate(store: &FileStore, settings: &Settings) -> Result<()> {
    store.put(cluster_network(settings))?;
    store.put(json!({
        "apiVersion": OWN, "kind": "PublicIPPool", "metadata": {"name": "region"},
        "spec": {"prefixes": [host::PUBLIC_RANGE]},
    }))?;
    if settings.outbound_type == OutboundType::UserDefinedRouting {
        store.put(route_table())?;
    }
    if settings.outbound_type == OutboundType::UserAssignedNatGateway {
        customers_nat_gateway().into_iter().try_for_each(|object| store.put(object).map(|_| ()))?;
    }
    for mux in settings.muxes() {
        let Host::Mux(number) = mux else { continue };
        store.put(json!({
            "apiVersion": OWN, "kind": "MuxNetwork", "metadata": {"name": mux.to_string()},
            "spec": {"address": mux.address(), "gateway": host::mux_gateway(number)},
        }))?;
    }
    for node in settings.nodes() {
        register(store, settings, node, 0)?;
    }
    Ok(())
}

fn cluster_network(settings: &Settings) -> Value {
    let mut spec = json!({"sku": settings.sku, "outboundType": settings.outbound_type});
    let managed = matches!(settings.outbound_type, OutboundType::ManagedNatGateway);
    if managed {
        spec["natGatewayProfile"] = json!({"managedOutboundIPProfile": {"count": 1}});
    }
    json!({
        "apiVersion": OWN, "kind": "ClusterNetwork", "metadata": {"name": "default"}, "spec": spec,
    })
}

/// What the customer brings for user-defined routing: a default route to the appliance.
fn route_table() -> Value {
    let route = json!({
        "addressPrefix": "0.0.0.0/0",
        "nextHopType": "VirtualAppliance",
        "nextHopIpAddress": Host::Appliance.address(),
    });
    let routes = json!([{"name": "default", "properties": route}]);
    let spec = json!({"name": "nodes", "properties": {"routes": routes}});
    json!({"apiVersion": OWN, "kind": "RouteTable", "metadata": {"name": "nodes"}, "spec": spec})
}

/// What the customer brings for a NAT gateway of their own: its address, and the gateway.
fn customers_nat_gateway() -> [Value; 2] {
    let address = json!({"metadata": {"name": "customer-nat"}, "spec": {"sku": "Standard"}});
    let properties = json!({"publicIpAddresses": [{"id": "publicIPAddresses/customer-nat"}]});
    let spec = json!({"name": "customer", "properties": properties});
    let gateway = json!({"metadata": {"name": "customer"}, "spec": spec});
    [("PublicIPAddress", address), ("NatGateway", gateway)].map(|(kind, mut object)| {
        object["apiVersion"] = json!(OWN);
        object["kind"] = json!(kind);
        object
    })
}

/// Where the nodes send what leaves the cluster: to the router, unless the cluster's routing is
/// the customer's own.
pub fn node_gateway(objects: &Objects) -> Ipv4Addr {
    let tables = objects.resources.route_tables.values();
    let mut routes = tables.flat_map(|table| &table.properties.routes);
    let appliance = routes.find_map(|route| {
        let properties = &route.properties;
        let is_default = properties.address_prefix == "0.0.0.0/0";
        let is_elsewhere = properties.next_hop_type.eq_ignore_ascii_case("VirtualAppliance");
        let next_hop = properties.next_hop_ip_address.as_ref()?.parse().ok()?;
        (is_default && is_elsewhere).then_some(next_hop)
    });
    if let Some(next_hop) = appliance {
        return next_hop;
    }
    match objects.cluster().outbound_type {
        OutboundType::UserDefinedRouting => Host::Appliance.address(),
        OutboundType::LoadBalancer
        | OutboundType::ManagedNatGateway
        | OutboundType::UserAssignedNatGateway
        | OutboundType::None => host::LAN_GATEWAY,
    }
}

/// Registers a node and its pods. `deployment` counts how often the machine was installed anew:
/// with it, uid and machine id change.
pub fn register(store: &FileStore, settings: &Settings, node: Host, deployment: u64) -> Result<()> {
    let Host::Node(number) = node else { return Ok(()) };
    let name = node.to_string();
    // Derived from the lab's seed, since the draw of a default outbound address may depend on it.
    let identity = |what: &str| identity(settings.seed, what, u64::from(number), deployment);
    let uid = identity("uid");
    let uid = [&uid[..8], &uid[8..12], &uid[12..16], &uid[16..20], &uid[20..]].join("-");
    store.put(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": uid,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.azure.com/agentpool": "nodepool1",
            },
        },
        "spec": {
            "podCIDR": host::pod_network(number), "podCIDRs": [host::pod_network(number)],
            "providerID": format!("deguchi-lab://{name}"),
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": node.address()},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"machineID": identity("machine")},
        },
    }))?;
    for pod in settings.pods(number) {
        store.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod.to_string(), "namespace": NAMESPACE,
                "labels": {(APP_LABEL.0): APP_LABEL.1, "pod": pod.to_string(), "node": name},
            },
            "spec": {
                "nodeName": name,
                "containers": [{"name": "web", "ports": [
                    {"name": "http", "containerPort": host::POD_PORTS[0]},
                    {"name": "http-alt", "containerPort": host::POD_PORTS[1]},
                ]}],
            },
            "status": {
                "podIP": pod.address(),
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))?;
    }
    Ok(())
}

/// Takes a node and its pods out of the cluster, as before its machine is installed anew. What
/// people wrote on the Node goes with it, except its annotations: those are returned.
pub fn unregister(store: &FileStore, settings: &Settings, node: Host) -> Result<Value> {
    let Host::Node(number) = node else { return Ok(Value::Null) };
    for pod in settings.pods(number) {
        store.delete(&Key::namespaced("Pod", NAMESPACE, &pod.to_string()))?;
    }
    let key = Key::cluster("Node", &node.to_string());
    let old = store.get(&key)?.with_context(|| format!("{key} does not exist"))?;
    store.delete(&key)?;
    Ok(old.pointer("/metadata/annotations").cloned().unwrap_or(Value::Null))
}

/// Says that a node's machine and with it its pods are, or are not, ready.
pub fn set_ready(store: &FileStore, settings: &Settings, node: Host, ready: bool) -> Result<()> {
    let Host::Node(number) = node else { return Ok(()) };
    let status = if ready { "True" } else { "Unknown" };
    let mut keys = vec![Key::cluster("Node", &node.to_string())];
    let pods = settings.pods(number);
    keys.extend(pods.iter().map(|pod| Key::namespaced("Pod", NAMESPACE, &pod.to_string())));
    for key in keys {
        store.change(&key, |object| {
            object["status"]["conditions"] = json!([{"type": "Ready", "status": status}]);
            Ok(())
        })?;
    }
    publish_endpoints(store)
}

/// Brings the EndpointSlices up to what Services and Pods say.
pub fn publish_endpoints(store: &FileStore) -> Result<()> {
    let services: Vec<Service> = read(store, "Service")?;
    let pods: Vec<Pod> = read(store, "Pod")?;
    let slices = pods::endpoint_slices(services.iter(), pods.iter());
    let mut stale: BTreeMap<Key, ()> = BTreeMap::new();
    for old in store.list("EndpointSlice")? {
        stale.insert(Key::of(&old)?, ());
    }
    for slice in slices.values() {
        let mut object = serde_json::to_value(slice).context("an EndpointSlice is no JSON")?;
        object["apiVersion"] = json!("discovery.k8s.io/v1");
        object["kind"] = json!("EndpointSlice");
        stale.remove(&Key::of(&object)?);
        store.put(object)?;
    }
    for key in stale.keys() {
        store.delete(key)?;
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(store: &FileStore, kind: &str) -> Result<Vec<T>> {
    store
        .list(kind)?
        .into_iter()
        .map(|object| {
            let key = Key::of(&object)?;
            serde_json::from_value(object).with_context(|| format!("{key} is damaged"))
        })
        .collect()
}

/// 32 hexadecimal digits that depend on all arguments.
fn identity(seed: u64, what: &str, number: u64, deployment: u64) -> String {
    let mut state = seed ^ 0x6465_6775_6368_6921;
    for word in what.bytes().map(u64::from).chain([number, deployment]) {
        state = mix(state ^ word);
    }
    format!("{:016x}{:016x}", mix(state), mix(state.wrapping_add(1)))
}

/// SplitMix64's step.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_installed_anew_is_another_machine() {
        let first = identity(1, "machine", 1, 0);
        assert_eq!(first, identity(1, "machine", 1, 0));
        for other in [
            identity(2, "machine", 1, 0),
            identity(1, "uid", 1, 0),
            identity(1, "machine", 2, 0),
            identity(1, "machine", 1, 1),
        ] {
            assert_ne!(first, other);
        }
    }
}
