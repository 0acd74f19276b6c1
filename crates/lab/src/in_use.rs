//! How many ports a node uses towards a destination, as its kernel's own flow table says.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use model::method::Protocol;
use node::inspect::AgentView;

use crate::host::Host;
use crate::place::Place;

/// Distinct (address, port) pairs that a node's live outbound flows have towards a destination.
pub fn ports(
    place: &Place,
    node: Host,
    destination: Ipv4Addr,
    port: Option<u16>,
    protocol: Protocol,
) -> Result<u32> {
    let agent = AgentView::open(place.name(), &node.to_string())
        .with_context(|| format!("the flow table of {node}"))?;
    // IANA's protocol numbers.
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Icmp => 1,
    };
    let used: BTreeSet<_> = agent
        .flows()?
        .into_iter()
        .filter(|flow| flow.is_outbound && !flow.is_over && flow.protocol == number)
        .filter(|flow| *flow.remote.ip() == destination)
        // An echo has an identifier where others have a port, and none at the far end.
        .filter(|flow| {
            protocol == Protocol::Icmp || port.is_none_or(|port| flow.remote.port() == port)
        })
        .map(|flow| flow.outside)
        .collect();
    u32::try_from(used.len()).context("more ports than there are")
}
