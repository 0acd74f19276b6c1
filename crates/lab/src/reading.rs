//! What the kernel's tables of nodes and muxes say at this moment: counters, flows, ports.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Result;
use datapath::{Drop, Event};
use model::lease::{Lease, LeaseState};
use model::method::Protocol;
use model::runtime::NodeNetwork;
use node::census::{Census, PortUse};
use node::counters::{Counters, Kind};
use node::inspect::{AgentView, MuxView};
use node::maps::FlowRoom;
use serde::Serialize;

use crate::host::Host;
use crate::place::Place;

/// A machine's tables.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// All counters since the tables were made: by kind, by name, zeroes too.
    pub counters: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// What only a node has.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeReading>,
}

/// A node's flows and ports.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReading {
    /// New outbound flows since the tables were made.
    pub snat_connections: SnatConnections,
    /// Flows that are there.
    pub flows: Census,
    /// The flow table's size.
    pub flow_table: FlowRoom,
    /// Ports, by frontend and protocol.
    pub ports: Vec<Ports>,
}

/// New outbound flows, counted by the packets that ask for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnatConnections {
    /// Opened or failed.
    pub attempted: u64,
    /// For want of a port, a lease, room in the flow table, or by a quota.
    pub failed: u64,
}

/// Ports of one frontend for one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// What the kernel says.
    #[serde(flatten)]
    pub found: PortUse,
    /// Ports that the node was given and that not every mux knows yet.
    pub pending: u32,
    /// Ports that the node has to give back once their flows are over.
    pub draining: u32,
}

/// Why a packet that asked for a new outbound flow got none.
const FAILED: [Drop; 4] =
    [Drop::PortsExhausted, Drop::NoLease, Drop::FlowTableFull, Drop::QuotaExceeded];

/// Reads the tables of a node, which was ordered to be as `network` says.
pub fn of_node(place: &Place, host: Host, network: Option<&NodeNetwork>) -> Result<Reading> {
    let agent = AgentView::open(place.name(), &host.to_string())?;
    let counters = agent.counters()?;
    let mut flows = agent.census()?;
    let ports = std::mem::take(&mut flows.ports);
    Ok(Reading {
        node: Some(NodeReading {
            snat_connections: snat_connections(&counters),
            flows,
            flow_table: agent.flow_room()?,
            ports: with_order(ports, network),
        }),
        counters: by_kind(&counters),
    })
}

/// Reads the tables of a mux.
pub fn of_mux(place: &Place, host: Host) -> Result<Reading> {
    let mux = MuxView::open(place.name(), &host.to_string())?;
    Ok(Reading { counters: by_kind(&mux.counters()?), node: None })
}

fn by_kind(counters: &Counters) -> BTreeMap<&'static str, BTreeMap<&'static str, u64>> {
    let mut kinds: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for ((kind, name), count) in counters {
        kinds.entry(kind.name()).or_default().insert(*name, *count);
    }
    kinds
}

fn snat_connections(counters: &Counters) -> SnatConnections {
    let count = |kind, name| counters.get(&(kind, name)).copied().unwrap_or(0);
    let failed = FAILED.iter().map(|reason| count(Kind::Drop, reason.name())).sum();
    let opened = count(Kind::Event, Event::FlowOut.name());
    SnatConnections { attempted: opened + failed, failed }
}

/// One row for every protocol of every frontend that the node has ports of, or flows by.
fn with_order(found: Vec<PortUse>, network: Option<&NodeNetwork>) -> Vec<Ports> {
    let leases = network.map_or(&[][..], |network| &network.spec.leases);
    let mut rows: BTreeMap<(Ipv4Addr, Protocol), PortUse> =
        found.into_iter().map(|row| ((row.frontend, row.protocol), row)).collect();
    for lease in leases {
        for protocol in Protocol::ALL {
            let key = (lease.range.address, protocol);
            rows.entry(key).or_insert_with(|| PortUse::none(lease.range.address, protocol));
        }
    }
    let ports = |frontend, state| {
        let is_in = |lease: &&Lease| lease.range.address == frontend && lease.state == state;
        leases.iter().filter(is_in).map(|lease| lease.range.ports()).sum()
    };
    let with_order = |found: PortUse| Ports {
        pending: ports(found.frontend, LeaseState::Granted),
        draining: ports(found.frontend, LeaseState::Draining),
        found,
    };
    rows.into_values().map(with_order).collect()
}
