//! Addresses that no new connection leaves by any more: how long they are kept for the flows that
//! they have, and what is told of that.
//!
//! A managed outbound address that is no longer counted is deleted only when no node holds ports of
//! it, which is when its flows have ended. Where they do not end, it is kept for an idle time-out
//! of the rule after the last node has read that nothing new is to begin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::addresses::existing;
use crate::event::Event;
use crate::lease::Millis;
use crate::objects::{DEFAULT, Kind, ObjectKey, Objects};
use crate::planner::aks::{MANAGED_NAT, MANAGED_OUTBOUND, MANAGED_TAG};
use crate::runtime::{Draining, NodeNetwork};

/// Addresses that are not to be deleted yet, because nodes hold ports of them.
pub(crate) fn kept(objects: &Objects, now: Millis) -> BTreeSet<IpAddr> {
    let draining = objects.inventory().spec.draining;
    let is_over = |address: &Ipv4Addr| {
        let until = draining.get(address).and_then(|draining| draining.until);
        until.is_some_and(|until| until <= now)
    };
    held(objects).into_keys().filter(|address| !is_over(address)).map(IpAddr::V4).collect()
}

/// Addresses without a resource on which nodes still have flows: nobody may draw them yet.
pub(crate) fn orphans(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let exist = existing(objects);
    held(objects).into_keys().filter(|address| !exist.contains(address)).collect()
}

/// Who holds ports of each address.
fn held(objects: &Objects) -> BTreeMap<Ipv4Addr, Vec<&NodeNetwork>> {
    let mut held: BTreeMap<Ipv4Addr, Vec<&NodeNetwork>> = BTreeMap::new();
    let networks = objects.node_networks.iter();
    for (_, network) in networks.filter(|(name, _)| objects.nodes.contains_key(*name)) {
        let own: BTreeSet<Ipv4Addr> =
            network.spec.leases.iter().map(|lease| lease.range.address).collect();
        own.into_iter().for_each(|address| held.entry(address).or_default().push(network));
    }
    held
}

/// Addresses by which new connections leave.
fn in_use(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let outbounds = objects.node_networks.values().flat_map(|network| &network.spec.outbound);
    outbounds.flat_map(|outbound| outbound.addresses.iter().copied()).collect()
}

/// Flows on an address, as the nodes last said.
fn flows(objects: &Objects, address: Ipv4Addr) -> u64 {
    let networks = objects.node_networks.values();
    networks.filter_map(|network| network.status.flows.get(&address)).map(|n| u64::from(*n)).sum()
}

/// Managed addresses that are kept for their flows alone.
fn only_kept(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let ips = objects.resources.public_ip_addresses.values().filter(|ip| {
        let managed = ip.tags.get(MANAGED_TAG);
        managed.is_some_and(|tag| [MANAGED_OUTBOUND, MANAGED_NAT].contains(&tag.as_str()))
            && ip.properties.ip_configuration.is_none()
            && ip.properties.nat_gateway.is_none()
    });
    ips.filter_map(|ip| ip.properties.ip_address.as_ref()?.parse().ok()).collect()
}

/// Writes down in `after` how long managed addresses are kept, and says what `before` has lost.
pub(crate) fn settle(before: &Objects, after: &mut Objects, now: Millis) -> Vec<Event> {
    let mut inventory = after.inventory();
    let known = std::mem::take(&mut inventory.spec.draining);
    let held_after = held(after);
    for address in only_kept(after) {
        let Some(holders) = held_after.get(&address) else {
            // It goes at the next look.
            let last = known.get(&address).cloned();
            inventory.spec.draining.extend(last.map(|draining| (address, draining)));
            continue;
        };
        let idle_minutes = idle_minutes(before).max(idle_minutes(after));
        let fresh = Draining { idle_minutes, until: None };
        let mut draining = known.get(&address).cloned().unwrap_or(fresh);
        if draining.until.is_none() && holders.iter().all(|node| follows(node, address, now)) {
            draining.until = Some(now.plus_seconds(u64::from(draining.idle_minutes) * 60));
        }
        inventory.spec.draining.insert(address, draining);
    }
    let events = events(before, after, &inventory.spec.draining);
    after.port_inventories.insert(DEFAULT.into(), inventory);
    events
}

/// The longest time of silence after which a flow ends.
fn idle_minutes(objects: &Objects) -> u32 {
    let outbounds = objects.node_networks.values().flat_map(|network| &network.spec.outbound);
    outbounds.map(|outbound| outbound.idle_timeout_in_minutes).max().unwrap_or(0)
}

/// Whether a node has read that nothing new is to begin on an address. One that is silent is not
/// waited for.
fn follows(network: &NodeNetwork, address: Ipv4Addr, now: Millis) -> bool {
    let mut own = network.spec.leases.iter().filter(|lease| lease.range.address == address);
    network.is_silent(now)
        || own.all(|lease| lease.is_leaving() && lease.epoch <= network.status.applied_epoch)
}

fn events(
    before: &Objects,
    after: &Objects,
    draining: &BTreeMap<Ipv4Addr, Draining>,
) -> Vec<Event> {
    let (used_before, used_after) = (in_use(before), in_use(after));
    let held_after = held(after);
    let exist = existing(after);
    let was_draining = before.inventory().spec.draining;
    let mut events = Vec::new();
    let mut tell = |is_warning, reason: &str, message: String| {
        let object = ObjectKey::new(Kind::ClusterNetwork, DEFAULT);
        events.push(Event { object, is_warning, reason: reason.into(), message });
    };
    for address in used_before.difference(&used_after) {
        if exist.contains(address) && held_after.contains_key(address) {
            let count = flows(before, *address);
            let end = match draining.get(address) {
                Some(Draining { idle_minutes, .. }) => format!(
                    ", for {idle_minutes} minutes at most once no node opens new ones; then the \
                     address is released"
                ),
                None => String::new(),
            };
            let message = format!(
                "no new connection leaves by {address}; {count} flows on it live on until they \
                 end{end}"
            );
            tell(false, "OutboundIPDraining", message);
        }
    }
    for address in held(before).into_keys().filter(|address| !exist.contains(address)) {
        let count = flows(before, address);
        let why = match was_draining.get(&address) {
            Some(Draining { idle_minutes, .. }) => {
                format!("it was drained for {idle_minutes} minutes")
            }
            None => "its resource is gone".to_owned(),
        };
        tell(count > 0, "OutboundIPGone", format!("{count} flows on {address} end: {why}"));
    }
    for address in was_draining.keys().filter(|address| !exist.contains(*address)) {
        if !held(before).contains_key(address) {
            let message = format!("all flows on {address} have ended; it is released");
            tell(false, "OutboundIPReleased", message);
        }
    }
    events
}
