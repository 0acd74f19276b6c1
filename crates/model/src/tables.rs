//! Desired state as the kernel's tables hold it, and the edits that lead there.
//!
//! [`agent_tables`] and [`mux_tables`] say what should stand in the tables of one machine, given
//! what stands there: whatever stays keeps its index, so that nothing moves under live flows.
//! [`AgentTables::edits`] and [`MuxTables::edits`] order the changes so that they may stop
//! anywhere: nothing points to what is not there yet, and nothing goes before its replacement is
//! there.

use std::collections::{BTreeMap, BTreeSet};

use datapath::limits::INTERNAL_RANGES_MAX;
use datapath::tables::FirstBytes;
use ipnet::Ipv4Net;
use thiserror::Error;

use crate::objects::Objects;

mod agent;
mod mux;
mod past;

pub use agent::{AgentEdit, AgentTables, agent_tables, policy_index};
pub use mux::{MuxEdit, MuxTables, mux_tables};

/// An address as rows hold it.
pub type Address = datapath::Ipv4;

/// Why there are no tables to apply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TablesError {
    /// The controller has not written anything for this machine yet.
    #[error("{kind} {name} does not exist yet: is the controller running?")]
    Missing {
        /// The kind.
        kind: &'static str,
        /// The machine's name.
        name: String,
    },
    /// The object has no address yet.
    #[error("{kind} {name} has no address: the Node needs an InternalIP, a mux spec.address")]
    NoAddress {
        /// The kind.
        kind: &'static str,
        /// The machine's name.
        name: String,
    },
    /// An older order than the one that is applied.
    #[error("{kind} {name}: epoch {offered} is older than the applied {applied}; ignored")]
    StaleEpoch {
        /// The kind.
        kind: &'static str,
        /// The machine's name.
        name: String,
        /// What is applied.
        applied: u32,
        /// What the object says.
        offered: u32,
    },
}

/// Keys that changed or came, with what they should hold.
fn changed<'a, K: Ord, V: PartialEq>(
    present: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| present.get(*key) != Some(*value))
}

/// Keys that went.
fn gone<'a, K: Ord, V>(
    present: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    present.keys().filter(|key| !desired.contains_key(key))
}

/// Where pods, nodes and muxes are: nothing comes in by a mux from there.
fn internal_ranges(objects: &Objects) -> BTreeSet<Ipv4Net> {
    let networks = || objects.node_networks.values().map(|network| &network.spec);
    let cidrs = networks().flat_map(|spec| spec.pod_cidrs.iter().copied());
    let nodes = networks().filter_map(|spec| spec.address);
    let muxes = objects.mux_networks.values().filter_map(|mux| mux.spec.address);
    let pods = objects.pods.values().filter_map(|pod| pod.status.pod_ip);
    let single = nodes.chain(muxes).chain(pods).map(Ipv4Net::from);
    let nets: Vec<Ipv4Net> = cidrs.chain(single).collect();
    Ipv4Net::aggregate(&nets).into_iter().take(INTERNAL_RANGES_MAX as usize).collect()
}

/// The first bytes of addresses in these ranges.
pub fn first_bytes(ranges: &BTreeSet<Ipv4Net>) -> FirstBytes {
    let mut set = FirstBytes::default();
    for net in ranges {
        set.add(net.network().octets()[0], net.prefix_len());
    }
    set
}
