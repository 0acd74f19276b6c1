//! What an event says of flows that could not be opened: the numbers, and the way out.

use std::net::Ipv4Addr;

use crate::lease::LeaseState;
use crate::method::Protocol;
use crate::objects::Objects;

/// Every port that `node` holds was in use towards one destination.
pub fn of_ports(
    objects: &Objects,
    node: &str,
    target: Ipv4Addr,
    port: u16,
    protocol: u8,
) -> String {
    let protocol = match protocol {
        datapath::protocol::TCP => Protocol::Tcp,
        datapath::protocol::UDP => Protocol::Udp,
        _ => Protocol::Icmp,
    };
    let network = objects.node_networks.get(node);
    let outbound = network.and_then(|network| {
        network.spec.outbound.iter().find(|outbound| outbound.protocol == protocol)
    });
    let addresses = outbound.map_or(&[][..], |outbound| &outbound.addresses);
    let held: Vec<(Ipv4Addr, u32)> = addresses
        .iter()
        .map(|address| {
            let leases = network.into_iter().flat_map(|network| &network.spec.leases);
            let usable = leases.filter(|lease| {
                lease.range.address == *address && lease.state == LeaseState::Usable
            });
            (*address, usable.map(|lease| lease.range.ports()).sum())
        })
        .collect();
    let total: u32 = held.iter().map(|(_, ports)| ports).sum();
    let sum: Vec<String> =
        held.iter().map(|(address, ports)| format!("{ports} on {address}")).collect();
    let end = match protocol {
        Protocol::Icmp => target.to_string(),
        Protocol::Tcp | Protocol::Udp => format!("{target}:{port}"),
    };
    format!(
        "node {node}: {} = {total} ports, all in use towards {end} ({protocol}); other \
         destinations go on. More ports: allocatedOutboundPorts or another outbound IP; fewer \
         flows: keep connections open",
        sum.join(" + ")
    )
}

/// A pod, or its namespace, had as many flows on `node` as it may.
pub fn of_quota(objects: &Objects, node: &str, source: Ipv4Addr) -> String {
    let pod = objects.pods.iter().find(|(_, pod)| pod.own_address() == Some(source));
    let pod = pod.map_or_else(|| source.to_string(), |(name, _)| name.clone());
    format!(
        "node {node}: pod {pod} or its namespace has as many flows as spec.quotas of the \
         ClusterNetwork allows, which is half of the node's flow table where it says nothing; half \
         of that may be unanswered"
    )
}
