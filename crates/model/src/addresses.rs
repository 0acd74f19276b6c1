//! Which public addresses nodes have of their own: instance-level ones that an annotation asks
//! for, and default outbound ones that the platform draws.
//!
//! A default outbound address is drawn at random from what is unused, stays with the machine until
//! the node is deployed again, and is superseded by any explicit method: its live flows end on it,
//! then it is released. What is released rests, so the next draw is always another one. Addresses
//! of Services and of the cluster are the planner's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::decide::{PUBLIC_IP_ANNOTATION, decide_among};
use crate::kubernetes::Node;
use crate::lease::{Millis, REST_SECONDS, Settings};
use crate::members::Members;
use crate::method::{Method, Protocol};
use crate::objects::Objects;
use crate::pools::Occupied;
use crate::runtime::DefaultOutboundIP;

/// Public IPv4 addresses where no `PublicIPPool` exists.
pub const DEFAULT_POOL: &str = "20.1.0.0/16";

/// Draws of a default outbound address that may meet one in use.
const DRAWS_MAX: u32 = 32;

/// Why a node does not get its own public address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressRefused {
    /// The annotation is no address.
    #[error(
        "node {node}: annotation {PUBLIC_IP_ANNOTATION}: {value:?} is neither an IPv4 address \
         nor \"true\""
    )]
    NoAddress {
        /// The node.
        node: String,
        /// What the annotation says.
        value: String,
    },
    /// The address belongs to somebody else.
    #[error(
        "node {node}: {address} is in use; remove annotation {PUBLIC_IP_ANNOTATION} or name a \
         free address"
    )]
    InUse {
        /// The node.
        node: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// The address is not the region's.
    #[error("node {node}: {address} is in no PublicIPPool; add it to one or name another")]
    NotInPool {
        /// The node.
        node: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// Nothing is free.
    #[error("node {node}: all {addresses} addresses of the PublicIPPools are used or rest")]
    NoneFree {
        /// The node.
        node: String,
        /// Addresses that there are.
        addresses: u64,
    },
}

impl AddressRefused {
    /// The reason in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            AddressRefused::NoAddress { .. } => "InvalidPublicIP",
            AddressRefused::InUse { .. } => "PublicIPInUse",
            AddressRefused::NotInPool { .. } => "PublicIPNotInPool",
            AddressRefused::NoneFree { .. } => "PublicIPPoolExhausted",
        }
    }
}

/// The region's IPv4 addresses, as runs with both ends included.
#[derive(Debug, Clone, Default)]
struct Region {
    runs: Vec<(u32, u32)>,
}

impl Region {
    fn of(objects: &Objects) -> Region {
        let occupied = Occupied::of(Some(&objects.cluster()), objects.nodes.values());
        let pools = objects.public_ip_pools.values();
        // The planner refuses the others.
        let pools = pools.filter(|pool| occupied.conflict(pool).is_none());
        let prefixes = pools.flat_map(|pool| &pool.spec.prefixes);
        let mut runs: Vec<(u32, u32)> = prefixes.filter_map(|text| run(text)).collect();
        if objects.public_ip_pools.is_empty() {
            runs.extend(run(DEFAULT_POOL));
        }
        Region { runs }
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        self.runs.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    fn count(&self) -> u64 {
        self.runs.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    fn address(&self, mut index: u64) -> Option<Ipv4Addr> {
        for (first, last) in &self.runs {
            let count = u64::from(last - first) + 1;
            if index < count {
                return Some(Ipv4Addr::from(first + index as u32));
            }
            index -= count;
        }
        None
    }

    /// An unused address, chosen by `random`.
    fn draw(&self, used: &BTreeSet<Ipv4Addr>, random: u64) -> Option<Ipv4Addr> {
        let count = self.count();
        // A fresh draw while there is a fair chance, so that a machine's next address does not
        // follow from its last one; then the first unused one behind the last draw.
        // BOUND: DRAWS_MAX; then each step skips a used address, or ends.
        let mut draw = random;
        for _ in 0..DRAWS_MAX {
            match self.address(draw % count.max(1)) {
                Some(address) if used.contains(&address) => draw = scramble(draw),
                found => return found,
            }
        }
        (0..count)
            .filter_map(|step| self.address((draw % count + step) % count))
            .find(|address| !used.contains(address))
    }
}

/// Reads a CIDR (without its first and last address, where there are more than two), an address,
/// or `first-last`. The planner says what is wrong with others.
fn run(text: &str) -> Option<(u32, u32)> {
    if let Ok(net) = text.trim().parse::<Ipv4Net>() {
        let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
        return Some(if last - first > 1 { (first + 1, last - 1) } else { (first, last) });
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: Ipv4Addr = first.trim().parse().ok()?;
    let last: Ipv4Addr = last.trim().parse().ok()?;
    (first <= last).then(|| (first.into(), last.into()))
}

/// SplitMix64: a seed and a name become a number that looks random.
fn random(seed: u64, name: &str) -> u64 {
    let mut state = seed;
    for byte in name.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    scramble(state)
}

fn scramble(mut state: u64) -> u64 {
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Public IPv4 addresses of resources: public IPs, and all of each prefix.
pub fn resource_addresses(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let resources = &objects.resources;
    let singles = resources
        .public_ip_addresses
        .values()
        .filter_map(|resource| resource.properties.ip_address.as_ref()?.parse().ok());
    let prefixes = resources
        .public_ip_prefixes
        .values()
        .filter_map(|resource| resource.properties.ip_prefix.as_ref()?.parse().ok())
        .flat_map(|net: Ipv4Net| {
            (u32::from(net.network())..=u32::from(net.broadcast())).map(Ipv4Addr::from)
        });
    singles.chain(prefixes).collect()
}

/// Every public IPv4 address that exists: of resources and of nodes.
pub fn existing(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let mut addresses = resource_addresses(objects);
    addresses.append(&mut node_addresses(objects));
    addresses
}

/// Public IPv4 addresses that nodes have of their own.
pub fn node_addresses(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let specs = objects.node_networks.values().map(|network| &network.spec);
    specs
        .flat_map(|spec| {
            let drawn = spec.default_outbound_ips.iter().map(|drawn| drawn.address);
            drawn.chain(spec.instance_public_ip)
        })
        .collect()
}

/// The machine behind a node: another one after the node is deployed again.
pub fn machine(node: &Node) -> String {
    let uid = node.metadata.uid.as_deref().unwrap_or_default();
    let info = node.status.node_info.as_ref();
    format!("{uid}/{}", info.map_or("", |info| info.machine_id.as_str()))
}

/// Gives nodes their addresses, in `objects`; what was refused, by node. Every node has its
/// `NodeNetwork` already.
pub fn assign(
    objects: &mut Objects,
    settings: &Settings,
    now: Millis,
    seed: u64,
) -> BTreeMap<String, AddressRefused> {
    let region = Region::of(objects);
    let mut used = existing(objects);
    used.extend(objects.public_ip_requests.values().filter_map(|request| {
        match request.spec.ip_address? {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }));
    used.extend(objects.inventory().spec.resting_addresses.keys());
    let mut refused = BTreeMap::new();
    let mut released = Vec::new();
    let names: Vec<String> = objects.nodes.keys().cloned().collect();
    // All instance-level addresses first: they decide who else may use a default one.
    for name in &names {
        assign_instance(objects, &region, name, &mut used, &mut released, &mut refused);
    }
    let members = Members::new(objects);
    for name in &names {
        assign_default(
            objects,
            &members,
            settings,
            &region,
            name,
            seed,
            &mut used,
            &mut released,
            &mut refused,
        );
    }
    if !released.is_empty() {
        let mut inventory = objects.inventory();
        let until = now.plus_seconds(REST_SECONDS);
        inventory.spec.resting_addresses.extend(released.into_iter().map(|one| (one, until)));
        objects.port_inventories.insert(inventory.metadata.name.clone(), inventory);
    }
    refused
}

fn assign_instance(
    objects: &mut Objects,
    region: &Region,
    name: &str,
    used: &mut BTreeSet<Ipv4Addr>,
    released: &mut Vec<Ipv4Addr>,
    refused: &mut BTreeMap<String, AddressRefused>,
) {
    let Some(node) = objects.nodes.get(name) else { return };
    let annotation = node.metadata.annotations.get(PUBLIC_IP_ANNOTATION).map(|text| text.trim());
    let Some(network) = objects.node_networks.get_mut(name) else { return };
    let current = network.spec.instance_public_ip;
    let node = name.to_owned();
    let wanted = match annotation {
        None | Some("" | "false") => Ok(None),
        Some("true") => match current.or_else(|| region.draw(used, 0)) {
            Some(address) => Ok(Some(address)),
            None => Err(AddressRefused::NoneFree { node, addresses: region.count() }),
        },
        Some(text) => match text.parse::<Ipv4Addr>() {
            Err(_) => Err(AddressRefused::NoAddress { node, value: text.to_owned() }),
            Ok(address) if current == Some(address) => Ok(current),
            Ok(address) if !region.contains(address) => {
                Err(AddressRefused::NotInPool { node, address })
            }
            Ok(address) if used.contains(&address) => Err(AddressRefused::InUse { node, address }),
            Ok(address) => Ok(Some(address)),
        },
    };
    let wanted = wanted.unwrap_or_else(|problem| {
        refused.insert(name.to_owned(), problem);
        current
    });
    if wanted != current {
        released.extend(current);
        used.extend(wanted);
        network.spec.instance_public_ip = wanted;
    }
}

#[expect(clippy::too_many_arguments, reason = "the state of one pass over all nodes")]
fn assign_default(
    objects: &mut Objects,
    members: &Members,
    settings: &Settings,
    region: &Region,
    name: &str,
    seed: u64,
    used: &mut BTreeSet<Ipv4Addr>,
    released: &mut Vec<Ipv4Addr>,
    refused: &mut BTreeMap<String, AddressRefused>,
) {
    let is_wanted = Protocol::ALL.into_iter().any(|protocol| {
        decide_among(objects, members, settings, name, protocol).method == Method::DefaultOutbound
    });
    let Some(machine) = objects.nodes.get(name).map(machine) else { return };
    let Some(network) = objects.node_networks.get_mut(name) else { return };
    let leases = &network.spec.leases;
    network.spec.default_outbound_ips.retain_mut(|drawn| {
        drawn.superseded |= !is_wanted;
        let has_leases = leases.iter().any(|lease| lease.range.address == drawn.address);
        // Another machine has none of the old one's flows.
        let stays = drawn.machine == machine && (!drawn.superseded || has_leases);
        if !stays {
            released.push(drawn.address);
        }
        stays
    });
    if !is_wanted || network.spec.default_outbound_ip().is_some() {
        return;
    }
    match region.draw(used, random(seed, &format!("{name}/{machine}"))) {
        Some(address) => {
            used.insert(address);
            let drawn = DefaultOutboundIP { address, machine, superseded: false };
            network.spec.default_outbound_ips.push(drawn);
        }
        None => {
            let problem =
                AddressRefused::NoneFree { node: name.to_owned(), addresses: region.count() };
            refused.insert(name.to_owned(), problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_a_cidr_leaves_out_its_first_and_last_address() {
        assert_eq!(run("203.0.113.0/30"), Some((0xcb00_7101, 0xcb00_7102)));
        assert_eq!(run("203.0.113.7"), Some((0xcb00_7107, 0xcb00_7107)));
        assert_eq!(run("203.0.113.9-203.0.113.11"), Some((0xcb00_7109, 0xcb00_710b)));
        assert_eq!(run("203.0.113.11-203.0.113.9"), None);
    }

    #[test]
    fn a_draw_finds_the_last_unused_address_whatever_the_seed() {
        let region = Region { runs: vec![(10, 12), (20, 21)] };
        let free = Ipv4Addr::from(20);
        let used: BTreeSet<Ipv4Addr> = [10, 11, 12, 21].map(Ipv4Addr::from).into();
        for seed in 0..50 {
            assert_eq!(region.draw(&used, random(seed, "n1")), Some(free));
        }
        assert_eq!(region.draw(&used.iter().copied().chain([free]).collect(), 7), None);
    }

    #[test]
    fn draws_with_other_seeds_differ() {
        let region = Region { runs: vec![(0, 65_535)] };
        let drawn: BTreeSet<_> =
            (0..20).map(|seed| region.draw(&BTreeSet::new(), random(seed, "n1"))).collect();
        assert!(drawn.len() > 15, "{drawn:?}");
    }
}
