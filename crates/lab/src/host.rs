//! The hosts of a lab: their names, their namespaces and their addresses. All of it follows from
//! the name alone, so that every process of a lab agrees without asking.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nodes of one lab: their last octet is 10 + number.
pub const NODES_MAX: u8 = 200;
/// Pods of one node: their last octet is their number.
pub const PODS_PER_NODE_MAX: u8 = 100;
/// Muxes of a lab.
pub const MUXES: u8 = 2;

/// The servers on the simulated Internet.
pub const INTERNET: [Ipv4Addr; 6] = [
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(198, 51, 100, 3),
    Ipv4Addr::new(198, 51, 100, 4),
    Ipv4Addr::new(198, 51, 100, 5),
    Ipv4Addr::new(198, 51, 100, 6),
    Ipv4Addr::new(198, 51, 100, 7),
];
/// Ports on which the Internet's servers answer.
pub const INTERNET_PORTS: [u16; 4] = [80, 443, 8080, 9000];
/// Ports on which every pod answers.
pub const POD_PORTS: [u16; 2] = [80, 8080];
/// The region's public addresses, which the router sends to the muxes.
pub const PUBLIC_NETWORK: &str = "203.0.113.0/24";
/// The addresses of [`PUBLIC_NETWORK`] that are handed out.
pub const PUBLIC_RANGE: &str = "203.0.113.1-203.0.113.254";
/// The address by which the appliance's own translation is seen.
pub const APPLIANCE_PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The router's end of the appliance's public link.
pub const APPLIANCE_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// The router on the nodes' LAN.
pub const LAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The router towards the Internet.
pub const INTERNET_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The gateway of every pod.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// One host: a network namespace that plays a machine or a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// The outside: servers, and clients of the Services.
    Internet,
    /// Between all links; spreads the public addresses over the muxes.
    Router,
    /// The customer's own way out, for user-defined routing.
    Appliance,
    /// A machine that passes packets from the Internet to the nodes.
    Mux(u8),
    /// A machine of the cluster.
    Node(u8),
    /// A pod: its node and its number there.
    Pod(u8, u8),
}

impl Host {
    /// Its address on the link to its gateway.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Host::Internet => INTERNET[0],
            Host::Router => LAN_GATEWAY,
            Host::Appliance => Ipv4Addr::new(10, 1, 0, 9),
            Host::Mux(mux) => Ipv4Addr::new(10, 2, mux, 2),
            Host::Node(node) => Ipv4Addr::new(10, 1, 0, 10 + node),
            Host::Pod(node, pod) => Ipv4Addr::new(10, 244, node, pod),
        }
    }

    /// The node that a pod runs on.
    pub fn node(self) -> Host {
        match self {
            Host::Pod(node, _) => Host::Node(node),
            other => other,
        }
    }
}

/// The router's end of a mux's link.
pub fn mux_gateway(mux: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, mux, 1)
}

/// The pod addresses of a node.
pub fn pod_network(node: u8) -> String {
    format!("10.244.{node}.0/24")
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Internet => f.write_str("internet"),
            Host::Router => f.write_str("router"),
            Host::Appliance => f.write_str("appliance"),
            Host::Mux(mux) => write!(f, "mux{mux}"),
            Host::Node(node) => write!(f, "node{node}"),
            Host::Pod(node, pod) => write!(f, "pod{node}-{pod}"),
        }
    }
}

impl FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let host = match text {
            "internet" => Some(Host::Internet),
            "router" => Some(Host::Router),
            "appliance" => Some(Host::Appliance),
            _ => numbered(text),
        };
        match host {
            // The name must be the one that is written for it, so that `node01` is nobody.
            Some(host) if host.to_string() == text => Ok(host),
            _ => bail!("{text:?} is no host of a lab"),
        }
    }
}

fn numbered(text: &str) -> Option<Host> {
    if let Some(number) = text.strip_prefix("mux") {
        return number.parse().ok().filter(|mux| (1..=MUXES).contains(mux)).map(Host::Mux);
    }
    if let Some(number) = text.strip_prefix("node") {
        return number.parse().ok().filter(|node| (1..=NODES_MAX).contains(node)).map(Host::Node);
    }
    let (node, pod) = text.strip_prefix("pod")?.split_once('-')?;
    let (node, pod) = (node.parse().ok()?, pod.parse().ok()?);
    let known = (1..=NODES_MAX).contains(&node) && (1..=PODS_PER_NODE_MAX).contains(&pod);
    known.then_some(Host::Pod(node, pod))
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_is_read_back_by_its_name() {
        let hosts = [
            Host::Internet,
            Host::Router,
            Host::Appliance,
            Host::Mux(1),
            Host::Mux(2),
            Host::Node(1),
            Host::Node(NODES_MAX),
            Host::Pod(1, 1),
            Host::Pod(NODES_MAX, PODS_PER_NODE_MAX),
        ];
        for host in hosts {
            assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
        }
        for other in ["", "node", "node0", "node01", "node201", "mux3", "pod1", "pod1-0", "a-node1"]
        {
            assert!(other.parse::<Host>().is_err(), "{other:?}");
        }
    }
}
