//! The kinds through which the controller, the agents and the muxes meet: `NodeNetwork` (what one
//! node holds and runs), `MuxNetwork` (one mux) and `PortInventory` (what nobody holds yet).
//!
//! The controller writes every spec; an agent writes the status of its own `NodeNetwork`, a mux
//! the status of its own `MuxNetwork`. Nothing else passes between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::kubernetes::ObjectMeta;
use crate::lease::{Drained, Lease, Millis, Resting};
use crate::method::{Method, Protocol};

/// A mux that has been silent this long receives no traffic any more.
pub const MUX_SILENCE_SECONDS: u64 = 30;
/// A node whose agent has been silent this long is not waited for by a listener.
pub const NODE_SILENCE_SECONDS: u64 = 30;

/// How one node leaves the cluster. Named like the node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNetwork {
    /// Name.
    pub metadata: ObjectMeta,
    /// What the node should do; the controller writes it.
    pub spec: NodeNetworkSpec,
    /// What the node does; its agent writes it.
    pub status: NodeNetworkStatus,
}

/// What a node should do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNetworkSpec {
    /// Epoch of the newest order for this node. An agent that has seen a newer one refuses this.
    pub epoch: u32,
    /// The node's address: where muxes send wrapped packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Addresses of the node's pods.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<Ipv4Net>,
    /// How new flows leave, one entry a protocol.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<NodeOutbound>,
    /// Ports that the node holds, whatever its method.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// The node's own public address.
    #[serde(rename = "instancePublicIP", skip_serializing_if = "Option::is_none")]
    pub instance_public_ip: Option<Ipv4Addr>,
    /// Addresses that the platform drew for the node: at most one that is not superseded.
    #[serde(rename = "defaultOutboundIPs", skip_serializing_if = "Vec::is_empty")]
    pub default_outbound_ips: Vec<DefaultOutboundIP>,
    /// What the node should have and cannot get: a reason, and the numbers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
}

impl NodeNetworkSpec {
    /// The default outbound address that new flows use.
    pub fn default_outbound_ip(&self) -> Option<Ipv4Addr> {
        let current = self.default_outbound_ips.iter().find(|drawn| !drawn.superseded);
        current.map(|drawn| drawn.address)
    }
}

/// How new flows of one protocol leave a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeOutbound {
    /// The protocol.
    pub protocol: Protocol,
    /// The method.
    pub method: Method,
    /// Public addresses, in the order in which they are filled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Ipv4Addr>,
    /// Minutes without a packet that end a flow.
    pub idle_timeout_in_minutes: u32,
    /// Whether idle TCP flows end with RST.
    #[serde(default)]
    pub enable_tcp_reset: bool,
}

/// An address that the platform drew for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultOutboundIP {
    /// The address.
    pub address: Ipv4Addr,
    /// The machine: it changes when the node is deployed again.
    pub machine: String,
    /// An explicit method has taken its place: live flows end on it, then it goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
}

/// What a node does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNetworkStatus {
    /// Epoch of the order that the kernel's tables hold.
    pub applied_epoch: u32,
    /// When the agent last wrote.
    pub heartbeat: Millis,
    /// Draining ranges without flows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drained: Vec<Drained>,
    /// Most ports in use towards one destination: more are asked for before they run out.
    pub used_ports: u32,
    /// Order about the tags of wrapped packets that the kernel's tables hold.
    pub tag_epoch: u32,
    /// Its programs are about to be taken off: muxes send no new connections.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// They are off: it has no connections any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// Flows that leave by each public address.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub flows: BTreeMap<Ipv4Addr, u32>,
    /// What keeps the agent from looking after its programs, while something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl NodeNetwork {
    /// Whether its agent has said nothing for long.
    pub fn is_silent(&self, now: Millis) -> bool {
        now >= self.status.heartbeat.plus_seconds(NODE_SILENCE_SECONDS)
    }
}

/// One mux. Named like the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MuxNetwork {
    /// Name.
    pub metadata: ObjectMeta,
    /// What the mux should know; who made the machine writes the addresses, the controller the
    /// epoch.
    pub spec: MuxNetworkSpec,
    /// What the mux does; the mux writes it.
    pub status: MuxNetworkStatus,
}

/// What a mux should know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MuxNetworkSpec {
    /// Its address: outer source of wrapped packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The gateway that wrapped packets go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Epoch of the newest order for any node.
    pub epoch: u32,
    /// Fingerprint of all nodes' epochs at that time: who sees others has not yet seen it all.
    pub fingerprint: u64,
}

/// What a mux does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MuxNetworkStatus {
    /// Epoch that the kernel's tables hold.
    pub applied_epoch: u32,
    /// When the mux last wrote.
    pub heartbeat: Millis,
    /// Its program runs and the router sends to it.
    pub ready: bool,
    /// It has taken its routes back and receives nothing.
    pub withdrawn: bool,
    /// Order about the tags of wrapped packets that the kernel's tables hold.
    pub tag_epoch: u32,
    /// What keeps the mux from looking after its program, while something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl MuxNetwork {
    /// Whether the mux may still receive traffic: not seen withdrawn, and not silent for long.
    pub fn is_live(&self, now: Millis) -> bool {
        let silent_at = self.status.heartbeat.plus_seconds(MUX_SILENCE_SECONDS);
        !self.status.withdrawn && self.status.heartbeat != Millis(0) && now < silent_at
    }
}

/// What nobody holds, and the count of orders. There is one, called `default`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortInventory {
    /// Name.
    pub metadata: ObjectMeta,
    /// The books.
    pub spec: PortInventorySpec,
}

/// An address that is kept for the flows that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    /// Minutes of silence after which the last of them is over.
    pub idle_minutes: u32,
    /// When it goes whatever is left; none, as long as a node may open new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
}

/// The books of a [`PortInventory`]; the controller writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortInventorySpec {
    /// Epoch of the newest order.
    pub epoch: u32,
    /// Ranges that rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resting: Vec<Resting>,
    /// Addresses that rest, and until when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resting_addresses: BTreeMap<Ipv4Addr, Millis>,
    /// Managed addresses that are kept for the flows that they have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<Ipv4Addr, Draining>,
    /// What was said of objects that are wrong or odd, so that it is said once.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub told: BTreeMap<String, BTreeSet<String>>,
}

/// Fingerprint of every node's epoch. A mux that computes the one of its
/// [`MuxNetworkSpec::fingerprint`] has seen every order up to that epoch, in whatever order the
/// objects reached it.
pub fn fingerprint<'a>(nodes: impl Iterator<Item = &'a NodeNetwork>) -> u64 {
    // FNV-1a. JSON numbers are exact up to 2^53.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for node in nodes {
        let name = node.metadata.name.bytes().chain([0]);
        for byte in name.chain(node.spec.epoch.to_be_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash >> 11
}
