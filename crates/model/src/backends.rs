//! The load-balancing rules of public frontends as packets meet them: address, port and protocol,
//! the pods behind them and the sources that may connect.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use datapath::Ipv4;
use datapath::protocol::{TCP, UDP};
use datapath::tables::RuleKey;
use ipnet::Ipv4Net;

use crate::kubernetes::{Service, ServicePort};
use crate::objects::Objects;
use crate::planner::names;
use crate::pods::{EndpointConditions, EndpointSlice, SERVICE_NAME_LABEL};
use crate::resources::{LoadBalancer, LoadBalancingRule, SecurityRuleProperties};
use crate::serving::Servers;

/// A pod that serves a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

/// A pod of a rule that takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unready {
    /// The pod.
    pub backend: Backend,
    /// It is about to go, and can serve meanwhile.
    pub is_serving: bool,
}

/// A rule of a public frontend.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicRule {
    /// Its name.
    pub name: String,
    /// Where clients connect.
    pub key: RuleKey<Ipv4>,
    /// Pods that take new connections, in order: those that are ready, or, where none is, those
    /// that serve until they are gone.
    pub backends: Vec<Backend>,
    /// Nodes that get new connections, and how many ready pods each has.
    pub nodes: BTreeMap<String, u32>,
    /// The other pods that are listed, in order: nothing new is for them, but connections that they
    /// have may go on.
    pub unready: Vec<Unready>,
    /// A client stays on one backend.
    pub client_affinity: bool,
    /// Idle TCP flows end with RST.
    pub tcp_reset: bool,
    /// Minutes without a packet that end a flow.
    pub idle_minutes: u32,
    /// Who may connect; none: everybody.
    pub allowed_sources: Option<BTreeSet<Ipv4Net>>,
}

/// All rules of public IPv4 frontends, by where clients connect.
pub fn public_rules(objects: &Objects) -> BTreeMap<RuleKey<Ipv4>, PublicRule> {
    let by_prefix: BTreeMap<String, &Service> = objects
        .services
        .values()
        .filter_map(|service| {
            let uid = service.metadata.uid.as_deref()?;
            Some((names::service_prefix(uid), service))
        })
        .collect();
    let slices = slices_by_service(objects);
    let servers = Servers::new(objects);
    let mut rules = BTreeMap::new();
    for balancer in objects.resources.load_balancers.values() {
        for rule in &balancer.properties.load_balancing_rules {
            for key in rule_keys(objects, balancer, rule) {
                let service = rule.name.split('-').next().and_then(|name| by_prefix.get(name));
                let listed = service.map_or_else(Vec::new, |service| {
                    service_port(service, &key)
                        .map(|port| listed(&slices, service, port))
                        .unwrap_or_default()
                });
                let (backends, unready) = by_readiness(listed);
                let properties = &rule.properties;
                let distribution = properties.load_distribution.as_deref().unwrap_or("Default");
                rules.insert(
                    key,
                    PublicRule {
                        name: rule.name.clone(),
                        key,
                        nodes: servers.of(
                            balancer,
                            rule,
                            backends.iter().map(|pod| pod.node.as_str()),
                        ),
                        backends,
                        unready,
                        client_affinity: distribution != "Default",
                        tcp_reset: properties.enable_tcp_reset.unwrap_or(false),
                        idle_minutes: properties
                            .idle_timeout_in_minutes
                            .unwrap_or(crate::decide::IDLE_MINUTES_DEFAULT),
                        allowed_sources: allowed_sources(objects, rule, &key),
                    },
                );
            }
        }
    }
    rules
}

/// Where clients connect to a rule: nowhere, if its frontend is not a public IPv4 one.
fn rule_keys(
    objects: &Objects,
    balancer: &LoadBalancer,
    rule: &LoadBalancingRule,
) -> Vec<RuleKey<Ipv4>> {
    let Some(reference) = &rule.properties.frontend_ip_configuration else { return Vec::new() };
    let frontend = balancer
        .properties
        .frontend_ip_configurations
        .iter()
        .find(|frontend| frontend.name.eq_ignore_ascii_case(reference.name()))
        .filter(|frontend| frontend.properties.public_ip_address.is_some());
    let Some(IpAddr::V4(vip)) =
        frontend.and_then(|frontend| objects.resources.frontend_address(frontend))
    else {
        return Vec::new();
    };
    let port = rule.properties.frontend_port;
    let protocols: &[u8] = match rule.properties.protocol.to_ascii_lowercase().as_str() {
        "tcp" => &[TCP],
        "udp" => &[UDP],
        "all" => &[TCP, UDP],
        _ => &[],
    };
    if port == 0 {
        return Vec::new();
    }
    let key = |protocol| RuleKey { vip: vip.into(), port: port.into(), protocol, reserved: 0 };
    protocols.iter().map(|protocol| key(*protocol)).collect()
}

fn service_port<'a>(service: &'a Service, key: &RuleKey<Ipv4>) -> Option<&'a ServicePort> {
    let number = i64::from(key.port.number());
    service.spec.ports.iter().find(|port| {
        let protocol = port.protocol();
        port.port == number
            && ((key.protocol == TCP && protocol == "TCP")
                || (key.protocol == UDP && protocol == "UDP"))
    })
}

fn slices_by_service(objects: &Objects) -> BTreeMap<String, Vec<&EndpointSlice>> {
    let mut slices: BTreeMap<String, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in objects.endpoint_slices.values().filter(|slice| slice.address_type == "IPv4") {
        if let Some(name) = slice.metadata.labels.get(SERVICE_NAME_LABEL) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or("default");
            slices.entry(format!("{namespace}/{name}")).or_default().push(slice);
        }
    }
    slices
}

/// The endpoints of a Service's port.
fn listed(
    slices: &BTreeMap<String, Vec<&EndpointSlice>>,
    service: &Service,
    port: &ServicePort,
) -> Vec<(Backend, EndpointConditions)> {
    let protocol = port.protocol();
    let name = port.name.as_deref().unwrap_or_default();
    let slices = slices.get(&service.metadata.key()).into_iter().flatten();
    let endpoints = slices.flat_map(|slice| {
        let number = slice
            .ports
            .iter()
            .filter(|port| port.name.as_deref().unwrap_or_default() == name)
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol)
            .find_map(|port| port.port);
        slice.endpoints.iter().filter_map(move |endpoint| {
            let backend = Backend {
                node: endpoint.node_name.clone()?,
                address: endpoint.addresses.first()?.parse().ok()?,
                port: number?,
            };
            Some((backend, endpoint.conditions.clone()))
        })
    });
    endpoints.collect()
}

/// Those that are ready, and those that are not, each once: an endpoint may stand in two slices
/// while it moves from one to the other. Where none is ready, those that serve until they are gone
/// take their place, as they do in Kubernetes.
fn by_readiness(listed: Vec<(Backend, EndpointConditions)>) -> (Vec<Backend>, Vec<Unready>) {
    let mut ready = BTreeSet::new();
    let mut others: BTreeMap<Backend, bool> = BTreeMap::new();
    for (backend, conditions) in listed {
        if conditions.is_ready() {
            ready.insert(backend);
        } else {
            *others.entry(backend).or_default() |= conditions.is_serving();
        }
    }
    if ready.is_empty() {
        let serving = others.iter().filter(|(_, is_serving)| **is_serving);
        ready.extend(serving.map(|(backend, _)| backend.clone()));
    }
    let others = others.into_iter().filter(|(backend, _)| !ready.contains(backend));
    let unready = others.map(|(backend, is_serving)| Unready { backend, is_serving }).collect();
    (ready.into_iter().collect(), unready)
}

/// Who may connect, by the security groups; none: everybody. Where there is no group, everybody
/// may, as nothing stands in the way.
fn allowed_sources(
    objects: &Objects,
    rule: &LoadBalancingRule,
    key: &RuleKey<Ipv4>,
) -> Option<BTreeSet<Ipv4Net>> {
    let groups = &objects.resources.network_security_groups;
    if groups.is_empty() {
        return None;
    }
    let floating = rule.properties.enable_floating_ip.unwrap_or(false);
    let mut destinations = vec![Ipv4Addr::from(key.vip)];
    let mut port = key.port.number();
    if !floating {
        let nodes = objects.node_networks.values();
        destinations.extend(nodes.filter_map(|network| network.spec.address));
        port = rule.properties.backend_port;
    }
    let mut rules: Vec<&SecurityRuleProperties> = groups
        .values()
        .flat_map(|group| &group.properties.security_rules)
        .map(|rule| &rule.properties)
        .filter(|rule| rule.direction.eq_ignore_ascii_case("Inbound"))
        .filter(|rule| covers_protocol(rule, key.protocol) && covers_port(rule, port))
        .filter(|rule| covers_destination(rule, &destinations))
        .collect();
    rules.sort_by_key(|rule| rule.priority);
    let mut sources = BTreeSet::new();
    for rule in rules {
        let prefixes = rule.source_address_prefix.iter().chain(&rule.source_address_prefixes);
        let allows = rule.access.eq_ignore_ascii_case("Allow");
        for prefix in prefixes {
            let everybody = ["*", "internet", "0.0.0.0/0", "any"]
                .contains(&prefix.to_ascii_lowercase().as_str());
            match (allows, everybody) {
                (true, true) => return None,
                (false, true) => return Some(sources),
                (true, false) if prefix.eq_ignore_ascii_case("VirtualNetwork") => {
                    sources.extend(cluster_sources(objects));
                }
                (true, false) => sources.extend(source(prefix)),
                // The trie holds who may connect; a refusal of some of these has no place in it.
                (false, false) => {}
            }
        }
    }
    // Azure's rule 65000 lets the virtual network in, unless an earlier rule shut everybody out.
    sources.extend(cluster_sources(objects));
    Some(sources)
}

fn source(prefix: &str) -> Option<Ipv4Net> {
    prefix.parse().ok().or_else(|| prefix.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
}

/// The cluster's own addresses.
fn cluster_sources(objects: &Objects) -> Vec<Ipv4Net> {
    let nodes = objects.node_networks.values();
    let nets: Vec<Ipv4Net> = nodes
        .flat_map(|network| {
            network.spec.pod_cidrs.iter().copied().chain(network.spec.address.map(Ipv4Net::from))
        })
        .collect();
    Ipv4Net::aggregate(&nets)
}

fn covers_protocol(rule: &SecurityRuleProperties, protocol: u8) -> bool {
    match rule.protocol.to_ascii_lowercase().as_str() {
        "*" => true,
        "tcp" => protocol == TCP,
        "udp" => protocol == UDP,
        _ => false,
    }
}

fn covers_port(rule: &SecurityRuleProperties, port: u16) -> bool {
    rule.destination_port_range.iter().chain(&rule.destination_port_ranges).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
        range == "*" || matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

fn covers_destination(rule: &SecurityRuleProperties, destinations: &[Ipv4Addr]) -> bool {
    let prefixes = rule.destination_address_prefix.iter().chain(&rule.destination_address_prefixes);
    prefixes.into_iter().any(|prefix| {
        let net = source(prefix);
        prefix == "*"
            || net.is_some_and(|net| destinations.iter().any(|address| net.contains(address)))
    })
}
