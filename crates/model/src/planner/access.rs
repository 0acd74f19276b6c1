//! Who may reach a Service: turns its sources into the security rules that are wanted. Which
//! priority they get and who else shares them is the security group's business.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::intent::Intent;
use super::listener::Transport;
use super::names::{self, Family};
use crate::resources::{SecurityRule, SecurityRuleProperties};

/// Security rules that a Service wants, in the order in which they get priorities, each with the
/// destinations that it wants in them.
pub type Wanted = Vec<(SecurityRule, Vec<IpAddr>)>;

/// The rules that `intent` wants for packets to `destinations`.
pub fn wanted(intent: &Intent, destinations: &[IpAddr]) -> Wanted {
    let sources = &intent.sources;
    let mut wanted = Wanted::new();
    if sources.unmanaged {
        return wanted;
    }
    let mut tags = sources.tags.clone();
    if tags.is_empty() && sources.ranges.is_empty() && !intent.internal {
        tags.push("Internet".to_owned());
    }
    let families = [Family::V4, Family::V6].map(|family| {
        let mut addresses: Vec<IpAddr> =
            destinations.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
        addresses.dedup();
        (family, addresses)
    });
    for (protocol, ports) in ports_by_protocol(intent) {
        for (family, addresses) in families.iter().filter(|(_, list)| !list.is_empty()) {
            for tag in &tags {
                let rule = allow(protocol, *family, vec![tag.clone()], &ports);
                wanted.push((rule, addresses.clone()));
            }
            let ranges: Vec<String> = sources
                .ranges
                .iter()
                .filter(|net| Family::of(net.network()) == *family)
                .map(IpNet::to_string)
                .collect();
            if !ranges.is_empty() {
                wanted.push((allow(protocol, *family, ranges, &ports), addresses.clone()));
            }
        }
    }
    if sources.deny_others && !sources.ranges.is_empty() {
        for (family, addresses) in families.into_iter().filter(|(_, list)| !list.is_empty()) {
            wanted.push((deny(family), addresses));
        }
    }
    wanted
}

/// Destination ports as they reach the node, in the order Tcp, Udp, `*`.
fn ports_by_protocol(intent: &Intent) -> Vec<(&'static str, Vec<String>)> {
    let mut ports: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for port in &intent.ports {
        let number = if intent.floating_ip { port.port } else { port.node_port };
        let place = match port.protocol {
            Transport::Tcp => 0,
            Transport::Udp => 1,
            Transport::Sctp => 2,
        };
        ports.entry(place).or_default().push(number.to_string());
    }
    let mut sorted = Vec::new();
    for (place, mut list) in ports {
        list.sort();
        sorted.push((["Tcp", "Udp", "*"][place], list));
    }
    sorted
}

fn allow(
    protocol: &str,
    family: Family,
    mut sources: Vec<String>,
    ports: &[String],
) -> SecurityRule {
    sources.sort();
    let name = names::allow_rule(protocol, family, &sources, ports);
    let (one, several) = match sources.as_slice() {
        [one] => (Some(one.clone()), Vec::new()),
        _ => (None, sources),
    };
    SecurityRule {
        name,
        properties: SecurityRuleProperties {
            protocol: protocol.to_owned(),
            access: "Allow".to_owned(),
            direction: "Inbound".to_owned(),
            source_port_range: Some("*".to_owned()),
            destination_port_ranges: ports.to_vec(),
            source_address_prefix: one,
            source_address_prefixes: several,
            ..SecurityRuleProperties::default()
        },
        ..SecurityRule::default()
    }
}

fn deny(family: Family) -> SecurityRule {
    SecurityRule {
        name: names::deny_rule(family),
        properties: SecurityRuleProperties {
            protocol: "*".to_owned(),
            access: "Deny".to_owned(),
            direction: "Inbound".to_owned(),
            source_port_range: Some("*".to_owned()),
            destination_port_range: Some("*".to_owned()),
            source_address_prefix: Some("*".to_owned()),
            ..SecurityRuleProperties::default()
        },
        ..SecurityRule::default()
    }
}
