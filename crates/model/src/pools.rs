//! Which addresses a `PublicIPPool` cannot have: those of nodes and pods, private ones, and those
//! that no host has. Owns the question; the planner refuses such a pool, and nobody draws from it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{ClusterNetworkSpec, PublicIPPool};
use crate::kubernetes::Node;

/// Addresses that no host has (RFC 6890).
const SPECIAL: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Whose each range is that is no pool's.
#[derive(Debug, Clone, Default)]
pub struct Occupied(Vec<(IpNet, String)>);

impl Occupied {
    /// What is somebody's in a cluster.
    pub fn of<'a>(
        cluster: Option<&ClusterNetworkSpec>,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> Occupied {
        let mut ranges: Vec<(IpNet, String)> = Vec::new();
        for node in nodes {
            let name = &node.metadata.name;
            let own =
                node.internal_ips().map(|address| (address.into(), format!("of Node {name}")));
            ranges.extend(own);
            let cidrs = node.spec.pod_cidr.iter().chain(&node.spec.pod_cidrs);
            let cidrs = cidrs.filter_map(|text| text.parse().ok());
            ranges.extend(cidrs.map(|net| (net, format!("of pods of Node {name}"))));
        }
        let special = SPECIAL.iter().filter_map(|text| text.parse().ok());
        ranges.extend(special.map(|net| (net, "that no host has".to_owned())));
        let private = cluster.map(ClusterNetworkSpec::private_ranges).unwrap_or_default();
        let why = "in privateRanges of the ClusterNetwork, to which nothing is translated";
        ranges.extend(private.into_iter().map(|net| (net, why.to_owned())));
        Occupied(ranges)
    }

    /// Why a prefix of a pool (a CIDR, an address, or `first-last`) cannot be one.
    fn conflict_of(&self, text: &str) -> Option<String> {
        let (first, last) = ends(text)?;
        let overlaps = |net: &IpNet| match (first, last, net) {
            (IpAddr::V4(first), IpAddr::V4(last), IpNet::V4(net)) => {
                first <= net.broadcast() && net.network() <= last
            }
            (IpAddr::V6(first), IpAddr::V6(last), IpNet::V6(net)) => {
                first <= net.broadcast() && net.network() <= last
            }
            _ => false,
        };
        let (net, whose) = self.0.iter().find(|(net, _)| overlaps(net))?;
        let text = text.trim();
        Some(format!("{text} overlaps {net}, addresses {whose}: take it out of spec.prefixes"))
    }

    /// Why a pool cannot be one.
    pub fn conflict(&self, pool: &PublicIPPool) -> Option<String> {
        pool.spec.prefixes.iter().find_map(|text| self.conflict_of(text))
    }
}

/// The first and last address of a prefix of a pool. The planner says what is wrong with others.
fn ends(text: &str) -> Option<(IpAddr, IpAddr)> {
    let text = text.trim();
    if let Ok(net) = text.parse::<IpNet>() {
        return Some((net.network(), net.broadcast()));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}
