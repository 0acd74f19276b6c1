//! The one brain that the controller runs: from everything that exists to everything that has to
//! be written.
//!
//! [`reconcile`] computes what should exist and writes the difference, so the same objects at the
//! same time yield no writes once they have been carried out. Writes come in an order in which
//! they may stop anywhere: what rests is written before what holds it goes, orders to nodes before
//! the epoch that muxes acknowledge, additions before removals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::addresses;
use crate::allocation::listener_blocks;
use crate::decide::{Outbound, decide_among};
use crate::draining;
pub use crate::event::Event;
use crate::kubernetes::Node;
use crate::lease::{
    Books, Demand, LISTENER_WAIT_SECONDS, Lease, Millis, PortRange, REST_SECONDS, Refusal, Resting,
    Settings, Situation, settle,
};
use crate::members::Members;
use crate::method::Protocol;
use crate::objects::{DEFAULT, Kind, Object, ObjectKey, Objects};
use crate::runtime::{NodeNetwork, NodeNetworkStatus, NodeOutbound, fingerprint};
use crate::services::plan_services;

/// Something to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Create the object, or replace all of it but its status.
    Put(Object),
    /// Replace the object's status.
    PutStatus(Object),
    /// Delete the object.
    Delete(ObjectKey),
    /// Tell whoever looks at an object.
    Event(Event),
}

/// Annotation of the `ClusterNetwork` that narrows the ports of each address: `first-last`.
pub const PORTS_ANNOTATION: &str = "deguchi.io/snat-ports";
/// Annotation of the `ClusterNetwork` that replaces the table of pool sizes:
/// `nodes:ports,nodes:ports,...`, smallest pools first.
pub const TABLE_ANNOTATION: &str = "deguchi.io/snat-table";

/// Which ports are handed out, from the annotations of the `ClusterNetwork`. What cannot be read
/// is as if it were not there.
pub fn settings(objects: &Objects) -> Settings {
    let mut settings = Settings::default();
    let Some(network) = objects.cluster_networks.get(DEFAULT) else { return settings };
    let annotation = |key: &str| network.metadata.annotations.get(key);
    let ports = annotation(PORTS_ANNOTATION).and_then(|text| {
        let (first, last) = text.split_once('-')?;
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
    });
    if let Some((first, last)) = ports
        && first >= settings.first_port
        && last <= settings.last_port
        && first < last
    {
        (settings.first_port, settings.last_port) = (first, last);
    }
    let tiers: Option<Vec<crate::lease::Tier>> = annotation(TABLE_ANNOTATION).and_then(|text| {
        text.split(',')
            .map(|tier| {
                let (nodes, ports) = tier.split_once(':')?;
                let ports: u32 = ports.trim().parse().ok()?;
                let nodes = nodes.trim().parse().ok()?;
                (ports.is_power_of_two() && ports >= 8)
                    .then_some(crate::lease::Tier { nodes, ports })
            })
            .collect()
    });
    settings.tiers = tiers.unwrap_or(settings.tiers);
    settings
}

/// What has to be written now.
pub fn reconcile(before: &Objects, now: Millis, seed: u64) -> Vec<Write> {
    // Without it nobody has said what this cluster is; what exists stays as it is.
    let Some(cluster) = before.cluster_networks.get(DEFAULT) else { return Vec::new() };
    let mut step = Step { after: before.clone(), now, settings: settings(before), events: vec![] };
    step.end_rests();
    step.events = plan_services(&mut step.after, cluster.clone(), now);
    step.rest_what_is_gone(before);
    step.prepare_node_networks();
    let refused = addresses::assign(&mut step.after, &step.settings, now, seed);
    step.settle_leases(before, &refused);
    step.events.extend(draining::settle(before, &mut step.after, now));
    writes(before, &step.after, step.events)
}

struct Step {
    after: Objects,
    now: Millis,
    settings: Settings,
    events: Vec<Event>,
}

impl Step {
    fn end_rests(&mut self) {
        let mut inventory = self.after.inventory();
        inventory.spec.resting_addresses.retain(|_, until| *until > self.now);
        self.after.port_inventories.insert(DEFAULT.into(), inventory);
    }

    /// Addresses whose resources have gone rest.
    fn rest_what_is_gone(&mut self, before: &Objects) {
        let mut inventory = self.after.inventory();
        let resting = &mut inventory.spec.resting_addresses;
        let until = self.now.plus_seconds(REST_SECONDS);
        let exist = addresses::resource_addresses(&self.after);
        for address in addresses::resource_addresses(before).difference(&exist) {
            resting.entry(*address).or_insert(until);
        }
        // A resource that somebody deleted by hand has left leases.
        let existing = addresses::existing(&self.after);
        for network in self.after.node_networks.values() {
            for lease in &network.spec.leases {
                if !existing.contains(&lease.range.address) {
                    resting.entry(lease.range.address).or_insert(until);
                }
            }
        }
        let gone = |name: &String| !self.after.nodes.contains_key(name);
        let networks = self.after.node_networks.iter().filter(|(name, _)| gone(name));
        for (_, network) in networks {
            let drawn = network.spec.default_outbound_ips.iter().map(|drawn| drawn.address);
            for address in drawn.chain(network.spec.instance_public_ip) {
                resting.entry(address).or_insert(until);
            }
        }
        self.after.port_inventories.insert(DEFAULT.into(), inventory);
    }

    /// Every node has its `NodeNetwork`, with what the node itself says.
    fn prepare_node_networks(&mut self) {
        for (name, node) in &self.after.nodes {
            let network = self.after.node_networks.entry(name.clone()).or_default();
            network.metadata.name.clone_from(name);
            network.spec.address = node_address(node);
            network.spec.pod_cidrs = pod_cidrs(node);
        }
    }

    fn settle_leases(
        &mut self,
        before: &Objects,
        refused: &BTreeMap<String, addresses::AddressRefused>,
    ) {
        let demands = self.decide_ways_out();
        let mut refusals: BTreeMap<String, BTreeMap<String, String>> = refused
            .iter()
            .map(|(node, problem)| {
                (node.clone(), BTreeMap::from([(problem.reason().into(), problem.to_string())]))
            })
            .collect();
        let mut books = books(&self.after);
        let listeners = listeners(&self.after);
        books.resting.extend(self.rest_listeners(before, &listeners));
        let networks = self.after.node_networks.iter();
        let silent = networks.filter(|(_, network)| network.is_silent(self.now));
        let situation = Situation {
            settings: &self.settings,
            demands: &demands,
            addresses: &live_addresses(&self.after),
            listeners: &listeners,
            drained: &said(&self.after, |status| status.drained.clone()),
            applied: &said(&self.after, |status| status.applied_epoch),
            silent: &silent.map(|(name, _)| name.clone()).collect(),
            acknowledged: acknowledged(&self.after, self.now),
            now: self.now,
        };
        let settlement = settle(&books, &situation);
        for (node, refusal) in &settlement.refusals {
            let entry = refusals.entry(node.clone()).or_default();
            entry.insert(refusal_reason(refusal).into(), refusal.to_string());
        }
        for (node, address, port) in &settlement.taken {
            self.events.push(Event {
                object: ObjectKey::new(Kind::Node, node),
                is_warning: true,
                reason: "PortTakenForListener".into(),
                message: format!(
                    "flows that leave by {address}:{port} end: a Service listens there, and has \
                     waited {LISTENER_WAIT_SECONDS} s"
                ),
            });
        }
        self.write_books(before, settlement.books, &refusals);
    }

    /// Writes down how each node leaves; what it should hold for that.
    fn decide_ways_out(&mut self) -> BTreeMap<String, Vec<Demand>> {
        let names: Vec<String> = self.after.nodes.keys().cloned().collect();
        let members = Members::new(&self.after);
        let mut demands = BTreeMap::new();
        for name in names {
            let outbounds = Protocol::ALL.map(|protocol| {
                (protocol, decide_among(&self.after, &members, &self.settings, &name, protocol))
            });
            if let Some(network) = self.after.node_networks.get_mut(&name) {
                network.spec.outbound = outbounds
                    .iter()
                    .map(|(protocol, outbound)| node_outbound(*protocol, outbound))
                    .collect();
            }
            demands.insert(name, node_demands(&outbounds));
        }
        demands
    }

    /// Ports on which nobody listens any more rest like others that had users.
    fn rest_listeners(
        &self,
        before: &Objects,
        listeners: &BTreeMap<Ipv4Addr, BTreeSet<u16>>,
    ) -> Vec<Resting> {
        let until = self.now.plus_seconds(REST_SECONDS);
        let now = listener_blocks(listeners);
        let mut gone = listener_blocks(&self::listeners(before));
        for (address, blocks) in &mut gone {
            let now = now.get(address).map_or(&[][..], Vec::as_slice);
            blocks.retain(|block| !now.contains(block));
        }
        // Other ports are nobody's to lease.
        let inside = |block: &PortRange| self.settings.whole(block.address).intersection(*block);
        let blocks = gone.into_values().flatten().filter(|block| inside(block).is_some());
        blocks.map(|range| Resting { range, until, awaits: None }).collect()
    }

    fn write_books(
        &mut self,
        before: &Objects,
        mut books: Books,
        refusals: &BTreeMap<String, BTreeMap<String, String>>,
    ) {
        self.after.node_networks.retain(|name, _| self.after.nodes.contains_key(name));
        for (name, network) in &mut self.after.node_networks {
            let leases = books.held.remove(name).unwrap_or_default();
            // The machine of a node that was away may still go by an order from before.
            let is_new = !before.node_networks.contains_key(name);
            if network.spec.leases != leases || is_new {
                network.spec.leases = leases;
                network.spec.epoch = books.epoch;
            }
            network.spec.refused = refusals.get(name).cloned().unwrap_or_default();
            let earlier = before.node_networks.get(name).map(|network| &network.spec.refused);
            for (reason, message) in &network.spec.refused {
                if earlier.is_none_or(|earlier| !earlier.contains_key(reason)) {
                    self.events.push(Event {
                        object: ObjectKey::new(Kind::Node, name),
                        is_warning: true,
                        reason: reason.clone(),
                        message: message.clone(),
                    });
                }
            }
        }
        let mut inventory = self.after.inventory();
        inventory.spec.epoch = books.epoch;
        inventory.spec.resting = books.resting;
        self.after.port_inventories.insert(DEFAULT.into(), inventory);
        let print = fingerprint(self.after.node_networks.values());
        for mux in self.after.mux_networks.values_mut() {
            mux.spec.epoch = books.epoch;
            mux.spec.fingerprint = print;
        }
    }
}

/// Something that each node says.
fn said<T>(objects: &Objects, what: impl Fn(&NodeNetworkStatus) -> T) -> BTreeMap<String, T> {
    let networks = objects.node_networks.iter();
    networks.map(|(name, network)| (name.clone(), what(&network.status))).collect()
}

fn node_address(node: &Node) -> Option<Ipv4Addr> {
    node.internal_ips().find_map(|address| match address {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    })
}

fn pod_cidrs(node: &Node) -> Vec<Ipv4Net> {
    let cidrs: BTreeSet<Ipv4Net> = node
        .spec
        .pod_cidr
        .iter()
        .chain(&node.spec.pod_cidrs)
        .filter_map(|text| text.parse().ok())
        .collect();
    cidrs.into_iter().collect()
}

fn node_demands(outbounds: &[(Protocol, Outbound)]) -> Vec<Demand> {
    let mut demands: Vec<Demand> = Vec::new();
    for demand in outbounds.iter().flat_map(|(_, outbound)| &outbound.demands) {
        if !demand.frontends.is_empty() && !demands.contains(demand) {
            demands.push(demand.clone());
        }
    }
    demands
}

fn node_outbound(protocol: Protocol, outbound: &Outbound) -> NodeOutbound {
    NodeOutbound {
        protocol,
        method: outbound.method,
        addresses: outbound.addresses(),
        idle_timeout_in_minutes: outbound.idle_timeout_in_minutes,
        enable_tcp_reset: outbound.enable_tcp_reset,
    }
}

fn refusal_reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoRoom { .. } => "InsufficientOutboundPorts",
        Refusal::Waiting { .. } => "WaitingForOutboundPorts",
        Refusal::TooManyRanges { .. } => "TooManyPortRanges",
    }
}

fn books(objects: &Objects) -> Books {
    let inventory = objects.inventory();
    let held: BTreeMap<String, Vec<Lease>> = objects
        .node_networks
        .iter()
        .filter(|(_, network)| !network.spec.leases.is_empty())
        .map(|(name, network)| (name.clone(), network.spec.leases.clone()))
        .collect();
    // After a write that stopped half-way the inventory may lag behind the nodes, never lead.
    let newest = objects.node_networks.values().map(|network| network.spec.epoch).max();
    let epoch = inventory.spec.epoch.max(newest.unwrap_or(0));
    Books { epoch, held, resting: inventory.spec.resting }
}

/// Addresses that leases may lie on.
fn live_addresses(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let mut addresses = addresses::resource_addresses(objects);
    let nodes = objects.nodes.keys().filter_map(|name| objects.node_networks.get(name));
    for network in nodes {
        addresses.extend(network.spec.instance_public_ip);
        addresses.extend(network.spec.default_outbound_ips.iter().map(|drawn| drawn.address));
    }
    addresses
}

/// Ports of public addresses on which Services listen.
pub fn listeners(objects: &Objects) -> BTreeMap<Ipv4Addr, BTreeSet<u16>> {
    let mut listeners: BTreeMap<Ipv4Addr, BTreeSet<u16>> = BTreeMap::new();
    for balancer in objects.resources.load_balancers.values() {
        let properties = &balancer.properties;
        let public = |reference: &crate::resources::SubResource| {
            let frontend = properties
                .frontend_ip_configurations
                .iter()
                .find(|frontend| frontend.name.eq_ignore_ascii_case(reference.name()))?;
            frontend.properties.public_ip_address.as_ref()?;
            match objects.resources.frontend_address(frontend)? {
                std::net::IpAddr::V4(address) => Some(address),
                std::net::IpAddr::V6(_) => None,
            }
        };
        let rules = properties.load_balancing_rules.iter().map(|rule| {
            (
                rule.properties.frontend_ip_configuration.as_ref(),
                Some(rule.properties.frontend_port),
            )
        });
        let nat_rules = properties.inbound_nat_rules.iter().map(|rule| {
            (rule.properties.frontend_ip_configuration.as_ref(), rule.properties.frontend_port)
        });
        for (frontend, port) in rules.chain(nat_rules) {
            if let (Some(address), Some(port)) = (frontend.and_then(public), port)
                && port != 0
            {
                listeners.entry(address).or_default().insert(port);
            }
        }
    }
    listeners
}

/// The oldest epoch among muxes that may still receive traffic.
fn acknowledged(objects: &Objects, now: Millis) -> Option<u32> {
    objects
        .mux_networks
        .values()
        .filter(|mux| mux.is_live(now))
        .map(|mux| mux.status.applied_epoch)
        .min()
}

/// Kinds that are written, in the order in which their puts come. Deletions come in reverse.
const WRITTEN: [Kind; 11] = [
    Kind::PortInventory,
    Kind::PublicIPPrefix,
    Kind::PublicIPAddress,
    Kind::NatGateway,
    Kind::NetworkSecurityGroup,
    Kind::LoadBalancer,
    Kind::RouteTable,
    Kind::NodeNetwork,
    Kind::MuxNetwork,
    Kind::Service,
    Kind::ClusterNetwork,
];

fn writes(before: &Objects, after: &Objects, events: Vec<Event>) -> Vec<Write> {
    let mut puts = Vec::new();
    let mut deletes = Vec::new();
    for kind in WRITTEN {
        let mut old: BTreeMap<ObjectKey, Object> =
            before.unlike(after, kind).into_iter().map(|object| (object.key(), object)).collect();
        for object in after.unlike(before, kind) {
            match old.remove(&object.key()) {
                Some(old) => puts.extend(changes(&old, &object)),
                None => puts.push(Write::Put(object)),
            }
        }
        deletes.extend(old.into_keys().map(Write::Delete));
    }
    deletes.reverse();
    puts.into_iter().chain(deletes).chain(events.into_iter().map(Write::Event)).collect()
}

/// The writes that turn one version of an object into another.
fn changes(old: &Object, new: &Object) -> Vec<Write> {
    match (old, new) {
        (Object::Service(before), Object::Service(after)) => {
            let mut writes = Vec::new();
            if before.status != after.status {
                writes.push(Write::PutStatus(new.clone()));
            }
            if (&before.metadata, &before.spec) != (&after.metadata, &after.spec) {
                writes.push(Write::Put(new.clone()));
            }
            writes
        }
        (Object::PublicIPAddress(_), Object::PublicIPAddress(_)) => {
            vec![Write::PutStatus(new.clone())]
        }
        _ => vec![Write::Put(new.clone())],
    }
}

/// Carries writes out on a snapshot, as a store does.
pub fn apply(objects: &mut Objects, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(object) => {
                let (mut object, old) = (object.clone(), objects.get(&object.key()));
                match (&mut object, old) {
                    (Object::NodeNetwork(new), Some(Object::NodeNetwork(old))) => {
                        new.status = old.status;
                    }
                    (Object::MuxNetwork(new), Some(Object::MuxNetwork(old))) => {
                        new.status = old.status;
                    }
                    (Object::Service(new), Some(Object::Service(old))) => new.status = old.status,
                    _ => {}
                }
                objects.insert(object);
            }
            Write::PutStatus(object) => {
                let (mut object, old) = (object.clone(), objects.get(&object.key()));
                match (&mut object, old) {
                    (_, None) => continue,
                    (Object::NodeNetwork(new), Some(Object::NodeNetwork(old))) => {
                        *new = NodeNetwork { status: new.status.clone(), ..old };
                    }
                    (Object::MuxNetwork(new), Some(Object::MuxNetwork(old))) => {
                        new.spec = old.spec;
                    }
                    (Object::Service(new), Some(Object::Service(old))) => {
                        new.metadata = old.metadata;
                        new.spec = old.spec;
                    }
                    (Object::PublicIPAddress(new), Some(Object::PublicIPAddress(old))) => {
                        new.request = old.request;
                    }
                    _ => {}
                }
                objects.insert(object);
            }
            Write::Delete(key) => {
                objects.remove(key);
            }
            Write::Event(_) => {}
        }
    }
}
