//! How many ports there are and how many each node should have: the table of pool sizes, what a
//! set of frontends can give, and why a node has less than it should.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use datapath::limits::BLOCK_PORTS;
use thiserror::Error;

use crate::ports::{PortRange, RANGES_MAX, Settings};

/// What a set of frontends can give, and what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Supply {
    /// Nodes that share the frontends.
    pub nodes: u32,
    /// Ports that they need together.
    pub needed: u64,
    /// Frontends that they share.
    pub frontends: u32,
    /// Ports of one frontend.
    pub ports_per_frontend: u32,
    /// Ports in blocks with listeners.
    pub listener_ports: u32,
}

impl Supply {
    /// Ports that there are.
    pub fn available(&self) -> u64 {
        (u64::from(self.frontends) * u64::from(self.ports_per_frontend))
            .saturating_sub(u64::from(self.listener_ports))
    }
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Supply { nodes, needed, frontends, ports_per_frontend, listener_ports } = self;
        write!(
            f,
            "{nodes} nodes need {needed} ports, and {frontends} frontend(s) x \
             {ports_per_frontend} ports - {listener_ports} at listeners = {}",
            self.available()
        )
    }
}

/// Why a node holds less than it should.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There are too few ports, whoever waits.
    #[error("node {node}: {held} of {wanted} ports: {supply}")]
    NoRoom {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
        /// What there is, and who needs it.
        supply: Supply,
    },
    /// There are enough ports, but others have flows on them or they rest.
    #[error(
        "node {node}: {held} of {wanted} ports: {supply}, but none is free: waits for {draining} \
         ports that other nodes drain and {resting} that rest"
    )]
    Waiting {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
        /// What there is, and who needs it.
        supply: Supply,
        /// Ports that other nodes drain.
        draining: u32,
        /// Ports that rest.
        resting: u32,
    },
    /// Free ports lie in too many pieces.
    #[error("node {node}: {held} of {wanted} ports: a node holds at most {RANGES_MAX} ranges")]
    TooManyRanges {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
    },
}

/// Blocks with listeners by address, in order.
pub(crate) fn listener_blocks(
    listeners: &BTreeMap<Ipv4Addr, BTreeSet<u16>>,
) -> BTreeMap<Ipv4Addr, Vec<PortRange>> {
    let length = BLOCK_PORTS as u16;
    listeners
        .iter()
        .map(|(address, ports)| {
            let starts: BTreeSet<u16> = ports.iter().map(|port| port / length * length).collect();
            let block = |start| PortRange { address: *address, start, length };
            (*address, starts.into_iter().map(block).collect())
        })
        .collect()
}

/// Ports of each node by the table of pool sizes: the table's figure for each frontend, at most
/// its largest.
pub fn table_ports(settings: &Settings, pool_size: u32, frontends: u32) -> u32 {
    let largest = settings.tiers.first().map_or(0, |tier| tier.ports);
    let figure = settings
        .tiers
        .iter()
        .find(|tier| pool_size <= tier.nodes)
        .or(settings.tiers.last())
        .map_or(0, |tier| tier.ports);
    (figure * frontends).min(largest)
}
