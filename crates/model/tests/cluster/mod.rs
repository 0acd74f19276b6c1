//! Clusters for tests, in sentences: what exists is said in the JSON that users write.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::Ipv4Addr;

use datapath::protocol;
use datapath::tables::{LeftoverKey, RuleKey, owner};
use datapath::{Ipv4, Port};
use model::decide::{Outbound, decide};
use model::lease::{Millis, Settings};
use model::method::Protocol;
use model::objects::{Object, ObjectKey, Objects};
use model::reconcile::{Write, apply, reconcile};
use model::tables::MuxTables;
use serde_json::{Value, json};

/// A cluster that is being looked at.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Everything that exists.
    pub objects: Objects,
    /// The time.
    pub now: Millis,
    /// Seed of the next draws.
    pub seed: u64,
}

/// An address.
pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

impl Cluster {
    /// A cluster with `nodes` nodes n1, n2, ... and the `ClusterNetwork` spec given.
    pub fn new(spec: Value, nodes: usize) -> Cluster {
        let mut cluster = Cluster { now: Millis(1_000_000), seed: 1, ..Cluster::default() };
        cluster.own("ClusterNetwork", "default", spec);
        cluster.own("PublicIPPool", "region", json!({"prefixes": ["203.0.113.0/24"]}));
        for index in 1..=nodes {
            cluster.node(index);
        }
        cluster
    }

    /// Adds an object.
    pub fn add(&mut self, document: Value) -> &mut Cluster {
        self.objects.insert(Object::from_json(document).unwrap());
        self
    }

    /// Adds an object of our own kinds.
    pub fn own(&mut self, kind: &str, name: &str, spec: Value) -> &mut Cluster {
        self.add(json!({
            "apiVersion": "deguchi.io/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        }))
    }

    /// Adds node n`index`, or deploys it again under another uid.
    pub fn node(&mut self, index: usize) -> &mut Cluster {
        self.node_with(index, json!({}), &format!("uid-{index}"))
    }

    /// Adds node n`index` with annotations and a uid.
    pub fn node_with(&mut self, index: usize, annotations: Value, uid: &str) -> &mut Cluster {
        self.add(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("n{index}"), "uid": uid, "annotations": annotations},
            "spec": {"podCIDR": format!("10.{}.{}.0/24", 100 + index / 256, index % 256)},
            "status": {
                "addresses": [{"type": "InternalIP", "address": node_address(index).to_string()}],
                "nodeInfo": {"machineID": format!("machine of {uid}")},
            },
        }))
    }

    /// Adds a public IP that exists.
    pub fn public_ip(&mut self, name: &str, address: &str) -> &mut Cluster {
        self.add(json!({
            "apiVersion": "deguchi.io/v1alpha1", "kind": "PublicIPAddress",
            "metadata": {"name": name},
            "status": {"name": name, "properties": {"ipAddress": address}},
        }))
    }

    /// Adds a load balancer with public frontends `(name, public IP)` and a pool `pool` of nodes.
    pub fn balancer(
        &mut self,
        sku: &str,
        frontends: &[(&str, &str)],
        members: &[usize],
        rules: Value,
        outbound_rules: Value,
    ) -> &mut Cluster {
        let frontends: Vec<Value> = frontends
            .iter()
            .map(|(name, ip)| json!({"name": name, "properties": {"publicIPAddress": {"id": ip}}}))
            .collect();
        let members: Vec<Value> = members
            .iter()
            .map(|index| {
                let address = node_address(*index).to_string();
                json!({"name": format!("n{index}"), "properties": {"ipAddress": address}})
            })
            .collect();
        self.own(
            "LoadBalancer",
            "kubernetes",
            json!({
                "sku": {"name": sku},
                "properties": {
                    "frontendIPConfigurations": frontends,
                    "backendAddressPools": [{
                        "name": "pool",
                        "properties": {"loadBalancerBackendAddresses": members},
                    }],
                    "loadBalancingRules": rules,
                    "outboundRules": outbound_rules,
                },
            }),
        )
    }

    /// What a packet of n`node` to a public destination meets.
    pub fn decide(&self, node: usize, protocol: Protocol) -> Outbound {
        self.decide_to(node, "198.51.100.9", protocol)
    }

    /// What a packet of n`node` to `destination` meets.
    pub fn decide_to(&self, node: usize, destination: &str, protocol: Protocol) -> Outbound {
        decide(&self.objects, &Settings::default(), &format!("n{node}"), ip(destination), protocol)
    }

    /// Lets the controller write until it has nothing more to say.
    pub fn settle(&mut self) -> Vec<Write> {
        let mut all = Vec::new();
        // BOUND: what a turn writes is what the next one builds on; a few turns are enough.
        for _ in 0..20 {
            let writes = reconcile(&self.objects, self.now, self.seed);
            if writes.is_empty() {
                return all;
            }
            apply(&mut self.objects, &writes);
            all.extend(writes);
        }
        panic!(
            "the controller does not come to rest: {:#?}",
            reconcile(&self.objects, self.now, self.seed)
        );
    }

    /// Time passes.
    pub fn wait(&mut self, seconds: u64) -> &mut Cluster {
        self.now = self.now.plus_seconds(seconds);
        self
    }

    /// Removes an object.
    pub fn remove(&mut self, kind: model::objects::Kind, key: &str) -> &mut Cluster {
        assert!(self.objects.remove(&ObjectKey::new(kind, key)), "{kind} {key} is not there");
        self
    }

    /// The addresses by which n`node` leaves over TCP, as its agent is told.
    pub fn addresses(&self, node: usize) -> Vec<Ipv4Addr> {
        let network = &self.objects.node_networks[&format!("n{node}")];
        network.spec.outbound[0].addresses.clone()
    }
}

/// InternalIP of n`index`.
pub fn node_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, (index / 250) as u8, (index % 250 + 1) as u8)
}

/// A load-balancing rule of `pool`.
pub fn rule(name: &str, frontend: &str, protocol: &str, port: u16, disable_snat: bool) -> Value {
    json!({"name": name, "properties": {
        "frontendIPConfiguration": {"id": frontend}, "backendAddressPool": {"id": "pool"},
        "protocol": protocol, "frontendPort": port, "backendPort": port,
        "enableFloatingIP": true, "disableOutboundSnat": disable_snat,
    }})
}

/// An outbound rule of `pool`.
pub fn outbound_rule(frontends: &[&str], protocol: &str, ports: u32) -> Value {
    let frontends: Vec<Value> = frontends.iter().map(|name| json!({"id": name})).collect();
    json!({"name": "aksOutboundRule", "properties": {
        "frontendIPConfigurations": frontends, "backendAddressPool": {"id": "pool"},
        "protocol": protocol, "allocatedOutboundPorts": ports,
        "idleTimeoutInMinutes": 30, "enableTcpReset": true,
    }})
}

/// The node that a mux sends a TCP packet to a port of a public address to, other than by a rule.
pub fn mux_target(tables: &MuxTables, vip: Ipv4, port: u16) -> Option<Ipv4> {
    let index = match tables.owner(vip, port) {
        owner::NONE => return None,
        owner::RULES => {
            let key = RuleKey { vip, port: Port::new(port), protocol: protocol::TCP, reserved: 0 };
            let start = Port::new(port - port % 8);
            let left = tables.leftovers.get(&LeftoverKey { vip, start, reserved: [0; 2] });
            *left.filter(|_| !tables.rules.contains_key(&key))?
        }
        index => u32::from(index),
    };
    tables.nodes.get(&index).map(|node| node.address)
}
