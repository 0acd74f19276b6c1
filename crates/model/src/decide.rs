//! The outbound decision: how a packet of a node (and so of its pods) reaches a destination.
//!
//! [`decide`] is the one answer to that question. The controller programs nodes with it,
//! `explain` tells it, tests use it as their oracle. It asks in this order, and the first yes
//! decides:
//!
//! 1. Is the destination in the cluster's private ranges? Then nothing is translated.
//! 2. Does a route send it elsewhere than to the Internet? Then whoever stands there translates.
//!    Routes are the `RouteTable` objects; `outboundType: userDefinedRouting` without one means
//!    that the cluster's own router decides.
//! 3. Is there a NAT gateway with a public address on the subnet? `outboundType`
//!    `managedNATGateway` or `userAssignedNATGateway`, or a `NatGateway` that lists subnets.
//! 4. Has the node its own public address? Annotation [`PUBLIC_IP_ANNOTATION`] on the Node: an
//!    address, or `true` for the next one of the pools.
//! 5. Does an outbound rule of a Standard load balancer cover the node's pool and the protocol?
//! 6. Does a load-balancing rule with SNAT? Any rule of a Basic load balancer, for every protocol;
//!    rules of a Standard one with `disableOutboundSnat: false`, for their own protocol.
//! 7. May the node use a default outbound address? Not if any node of its group has a Standard
//!    resource, and not with `outboundType: none`.
//!
//! Otherwise there is no way out. Groups are node pools: nodes with the same value of label
//! `kubernetes.azure.com/agentpool` or `agentpool`, and all nodes without.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use datapath::limits::SEGMENTS_MAX;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::cluster::{IcmpEcho, OutboundType};
use crate::lease::{Demand, Settings, Shape, table_ports};
use crate::members::{Members, is_standard};
use crate::method::{Method, Protocol};
use crate::objects::Objects;
use crate::resources::{
    FrontendIPConfiguration, LoadBalancer, LoadBalancingRule, NatGateway, OutboundRule, SubResource,
};

/// Annotation of a Node: its own public address, or `true` for one of the pools.
pub const PUBLIC_IP_ANNOTATION: &str = "deguchi.io/public-ip";
/// Ports that a node starts with behind a NAT gateway, and by which it grows.
pub const NAT_GATEWAY_STEP: u32 = 1024;
/// Idle minutes where nothing can say otherwise.
pub const IDLE_MINUTES_DEFAULT: u32 = 4;

/// A question that was asked, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The question.
    pub question: String,
    /// Whether the answer decides.
    pub answer: bool,
    /// What was found.
    pub found: String,
}

/// A public address through which packets leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// Who owns it: a frontend configuration, a NAT gateway, the node, the platform.
    pub name: String,
    /// The address.
    pub address: Ipv4Addr,
}

/// How packets leave, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// The method.
    pub method: Method,
    /// The rule, gateway or next hop that it goes by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The addresses, in the order in which they are filled. Empty for a default outbound
    /// address that has not been drawn yet.
    pub frontends: Vec<Frontend>,
    /// Ports that the node should hold, over all frontends.
    pub ports: u32,
    /// Minutes without a packet that end a flow.
    pub idle_timeout_in_minutes: u32,
    /// Whether idle TCP flows end with RST.
    pub enable_tcp_reset: bool,
    /// The questions, in order; the last one decided.
    pub why: Vec<Step>,
    /// What the node should hold.
    #[serde(skip)]
    pub demands: Vec<Demand>,
}

impl Outbound {
    fn new(method: Method) -> Outbound {
        Outbound {
            method,
            via: None,
            frontends: Vec::new(),
            ports: 0,
            idle_timeout_in_minutes: IDLE_MINUTES_DEFAULT,
            enable_tcp_reset: false,
            why: Vec::new(),
            demands: Vec::new(),
        }
    }

    fn with_demand(mut self, frontends: Vec<Frontend>, ports: u32, shape: Shape) -> Outbound {
        let addresses = frontends.iter().map(|frontend| frontend.address).collect();
        self.ports += ports;
        self.demands.push(Demand { frontends: addresses, ports, shape, gives_back: false });
        self.frontends.extend(frontends);
        self
    }

    /// The addresses, in the order in which they are filled.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.frontends.iter().map(|frontend| frontend.address).collect()
    }
}

/// Decides how packets of `node` reach `destination`.
pub fn decide(
    objects: &Objects,
    settings: &Settings,
    node: &str,
    destination: Ipv4Addr,
    protocol: Protocol,
) -> Outbound {
    let mut why = Vec::new();
    let private = private_range(objects, destination);
    let found = match private {
        Some(range) => format!("{destination} is in {range}"),
        None => format!("{destination} is in none of the private ranges"),
    };
    ask(&mut why, "Is the destination private?", private.is_some(), found);
    if private.is_some() {
        return Outbound { why, ..Outbound::new(Method::NotTranslated) };
    }
    let members = &Members::new(objects);
    let asked = Asked { objects, members, settings, node, protocol };
    let mut outbound = by_route(route(objects, destination), &mut why, |why| platform(&asked, why));
    outbound.why = why;
    outbound
}

/// How packets of `node` reach the Internet where no route says otherwise.
pub fn decide_default(
    objects: &Objects,
    settings: &Settings,
    node: &str,
    protocol: Protocol,
) -> Outbound {
    decide_among(objects, &Members::new(objects), settings, node, protocol)
}

/// The same as [`decide_default`] for one of many nodes.
pub(crate) fn decide_among(
    objects: &Objects,
    members: &Members,
    settings: &Settings,
    node: &str,
    protocol: Protocol,
) -> Outbound {
    let mut why = Vec::new();
    let asked = Asked { objects, members, settings, node, protocol };
    let route = match default_route(objects) {
        Route::Elsewhere { .. } | Route::Nowhere(_) if has_internet_routes(objects) => {
            Route::Internet("some routes lead to the Internet".into())
        }
        route => route,
    };
    let mut outbound = by_route(route, &mut why, |why| platform(&asked, why));
    outbound.why = why;
    outbound
}

fn by_route(
    route: Route,
    why: &mut Vec<Step>,
    platform: impl FnOnce(&mut Vec<Step>) -> Outbound,
) -> Outbound {
    const QUESTION: &str = "Does a route send it elsewhere than to the Internet?";
    match route {
        Route::Internet(found) => {
            ask(why, QUESTION, false, found);
            platform(why)
        }
        Route::Elsewhere { next_hop, found } => {
            ask(why, QUESTION, true, found);
            Outbound { via: next_hop, ..Outbound::new(Method::UserDefinedRouting) }
        }
        Route::Nowhere(found) => {
            ask(why, QUESTION, true, found);
            Outbound::new(Method::None)
        }
    }
}

fn ask(why: &mut Vec<Step>, question: &str, answer: bool, found: impl Into<String>) {
    why.push(Step { question: question.to_owned(), answer, found: found.into() });
}

fn private_range(objects: &Objects, destination: Ipv4Addr) -> Option<IpNet> {
    objects
        .cluster()
        .private_ranges()
        .into_iter()
        .filter(|range| range.contains(&IpAddr::V4(destination)))
        .max_by_key(IpNet::prefix_len)
}

/// Where a route sends packets.
enum Route {
    Internet(String),
    Elsewhere { next_hop: Option<String>, found: String },
    Nowhere(String),
}

/// A route of a `RouteTable`, as the datapath needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Destinations.
    pub prefix: Ipv4Net,
    /// Whether the platform translates what goes there.
    pub translated: bool,
}

/// Destinations that a route table treats otherwise than the default route does.
pub fn route_exceptions(objects: &Objects) -> Vec<Exception> {
    let default =
        matches!(default_route(objects), Route::Internet(_)) || has_internet_routes(objects);
    let mut exceptions: Vec<Exception> = routes(objects)
        .filter(|(prefix, _)| prefix.prefix_len() > 0 || default)
        .map(|(prefix, route)| Exception {
            prefix,
            translated: matches!(route, Route::Internet(_)),
        })
        // A node that translates everything needs to know only what it does not translate.
        .filter(|exception| !exception.translated || has_default_elsewhere(objects))
        .collect();
    exceptions.sort();
    exceptions.dedup_by_key(|exception| exception.prefix);
    exceptions
}

fn has_default_elsewhere(objects: &Objects) -> bool {
    !matches!(default_route(objects), Route::Internet(_))
}

fn has_internet_routes(objects: &Objects) -> bool {
    routes(objects)
        .any(|(prefix, route)| prefix.prefix_len() > 0 && matches!(route, Route::Internet(_)))
}

fn routes(objects: &Objects) -> impl Iterator<Item = (Ipv4Net, Route)> + '_ {
    let routes = objects.resources.route_tables.values().flat_map(|table| {
        table
            .properties
            .routes
            .iter()
            .map(move |route| (&table.name, &route.name, &route.properties))
    });
    routes.filter_map(|(table, name, properties)| {
        let prefix: Ipv4Net = properties.address_prefix.parse().ok()?;
        let hop = properties.next_hop_type.as_str();
        let found = format!("route {name} of {table}: {prefix} to {hop}");
        let route = match hop.to_ascii_lowercase().as_str() {
            "internet" => Route::Internet(found),
            "none" => Route::Nowhere(found),
            _ => Route::Elsewhere { next_hop: properties.next_hop_ip_address.clone(), found },
        };
        Some((prefix, route))
    })
}

fn default_route(objects: &Objects) -> Route {
    let found = routes(objects).find(|(prefix, _)| prefix.prefix_len() == 0);
    found.map_or_else(|| system_route(objects), |(_, route)| route)
}

fn system_route(objects: &Objects) -> Route {
    if objects.cluster().outbound_type == OutboundType::UserDefinedRouting {
        let found = "outboundType is userDefinedRouting: the cluster's own router decides";
        return Route::Elsewhere { next_hop: None, found: found.into() };
    }
    Route::Internet("no route table says so".into())
}

fn route(objects: &Objects, destination: Ipv4Addr) -> Route {
    let found = routes(objects)
        .filter(|(prefix, _)| prefix.contains(&destination))
        .max_by_key(|(prefix, _)| prefix.prefix_len());
    found.map_or_else(|| system_route(objects), |(_, route)| route)
}

/// Asks one question; the way out, if the answer is yes.
type Way = fn(&Asked<'_>, &mut Vec<Step>) -> Option<Outbound>;

fn platform(asked: &Asked<'_>, why: &mut Vec<Step>) -> Outbound {
    let methods: [Way; 5] =
        [nat_gateway, instance_public_ip, outbound_rule, implicit_snat, default_outbound];
    let decided = methods.into_iter().find_map(|method| method(asked, why));
    let Some(decided) = decided else {
        ask(why, "Is there any other way out?", true, "no: packets are dropped");
        return Outbound::new(Method::None);
    };
    let azure_drops = decided.method != Method::InstancePublicIp
        && asked.protocol == Protocol::Icmp
        && asked.objects.cluster().icmp_echo == IcmpEcho::Drop;
    if azure_drops {
        ask(why, "Is ICMP dropped?", true, format!("icmpEcho is Drop; {}", decided.method));
        return Outbound::new(Method::None);
    }
    decided
}

/// What is asked about.
struct Asked<'a> {
    objects: &'a Objects,
    members: &'a Members,
    settings: &'a Settings,
    node: &'a str,
    protocol: Protocol,
}

/// IPv4 addresses of public IPs and prefixes.
fn public_addresses(
    objects: &Objects,
    addresses: &[SubResource],
    prefixes: &[SubResource],
) -> Vec<Ipv4Addr> {
    let resources = &objects.resources;
    let singles = addresses.iter().filter_map(|reference| {
        resources.public_ip_address(reference.name())?.properties.ip_address.as_ref()?.parse().ok()
    });
    let runs = prefixes.iter().filter_map(|reference| {
        resources.public_ip_prefix(reference.name())?.properties.ip_prefix.as_ref()?.parse().ok()
    });
    // The whole prefix: nothing here keeps a network or broadcast address back.
    let runs = runs.flat_map(|run: Ipv4Net| {
        let (first, last) = (u32::from(run.network()), u32::from(run.broadcast()));
        (first..=last).take(SEGMENTS_MAX).map(Ipv4Addr::from)
    });
    let mut seen = BTreeSet::new();
    singles.chain(runs).filter(|address| seen.insert(*address)).take(SEGMENTS_MAX).collect()
}

/// The NAT gateway of the subnet, if there is one that has addresses.
fn subnet_nat_gateway(objects: &Objects) -> Option<(&NatGateway, Vec<Ipv4Addr>)> {
    let cluster = objects.cluster();
    let chosen = match cluster.outbound_type {
        OutboundType::ManagedNatGateway | OutboundType::UserAssignedNatGateway => {
            let named = cluster.nat_gateway_profile.and_then(|profile| profile.nat_gateway);
            match named {
                Some(reference) => objects.resources.nat_gateway(reference.name()),
                None => objects.resources.nat_gateways.values().next(),
            }
        }
        OutboundType::LoadBalancer | OutboundType::UserDefinedRouting | OutboundType::None => {
            let on_subnet = |gateway: &&NatGateway| !gateway.properties.subnets.is_empty();
            objects.resources.nat_gateways.values().find(on_subnet)
        }
    }?;
    let properties = &chosen.properties;
    let addresses =
        public_addresses(objects, &properties.public_ip_addresses, &properties.public_ip_prefixes);
    (!addresses.is_empty()).then_some((chosen, addresses))
}

fn nat_gateway(asked: &Asked<'_>, why: &mut Vec<Step>) -> Option<Outbound> {
    const QUESTION: &str = "Is there a NAT gateway with a public address on the subnet?";
    let Some((gateway, addresses)) = subnet_nat_gateway(asked.objects) else {
        ask(why, QUESTION, false, "none");
        return None;
    };
    ask(why, QUESTION, true, format!("{} with {} address(es)", gateway.name, addresses.len()));
    let idle = gateway.properties.idle_timeout_in_minutes.unwrap_or(IDLE_MINUTES_DEFAULT);
    let mut outbound = Outbound::new(Method::NatGateway);
    outbound.via = Some(gateway.name.clone());
    // The time-out of a NAT gateway is for TCP; UDP has a fixed one.
    outbound.idle_timeout_in_minutes = match asked.protocol {
        Protocol::Tcp => idle,
        Protocol::Udp | Protocol::Icmp => IDLE_MINUTES_DEFAULT,
    };
    let network = asked.objects.node_networks.get(asked.node);
    let (held, used) = network.map_or((0, 0), |network| {
        let held: u32 = network
            .spec
            .leases
            .iter()
            .filter(|lease| addresses.contains(&lease.range.address))
            .filter(|lease| !lease.is_leaving())
            .map(|lease| lease.range.ports())
            .sum();
        (held, network.status.used_ports)
    });
    let frontends =
        addresses.into_iter().map(|address| Frontend { name: gateway.name.clone(), address });
    outbound = outbound.with_demand(frontends.collect(), gateway_ports(held, used), Shape::Aligned);
    outbound.demands.iter_mut().for_each(|demand| demand.gives_back = true);
    Some(outbound)
}

/// Ports for a node behind a NAT gateway that holds and uses so many: more before they run out,
/// fewer when what would be left is hardly used.
fn gateway_ports(held: u32, used: u32) -> u32 {
    let used = u64::from(used);
    let less = held.saturating_sub(NAT_GATEWAY_STEP);
    if held < NAT_GATEWAY_STEP {
        NAT_GATEWAY_STEP
    } else if used * 5 >= u64::from(held) * 4 {
        held + NAT_GATEWAY_STEP
    } else if used * 5 < u64::from(less) * 2 {
        less.max(NAT_GATEWAY_STEP)
    } else {
        held
    }
}

fn instance_public_ip(asked: &Asked<'_>, why: &mut Vec<Step>) -> Option<Outbound> {
    const QUESTION: &str = "Has the node its own public address?";
    let network = asked.objects.node_networks.get(asked.node);
    let Some(address) = network.and_then(|network| network.spec.instance_public_ip) else {
        ask(why, QUESTION, false, "no");
        return None;
    };
    ask(why, QUESTION, true, format!("{address}"));
    let frontend = Frontend { name: asked.node.to_owned(), address };
    let outbound = Outbound::new(Method::InstancePublicIp);
    Some(outbound.with_demand(vec![frontend], asked.settings.ports(), Shape::Runs))
}

/// Public IPv4 addresses of a frontend; none for an internal one.
fn frontend_addresses(objects: &Objects, frontend: &FrontendIPConfiguration) -> Vec<Frontend> {
    let properties = &frontend.properties;
    let addresses = public_addresses(
        objects,
        properties.public_ip_address.as_slice(),
        properties.public_ip_prefix.as_slice(),
    );
    addresses.into_iter().map(|address| Frontend { name: frontend.name.clone(), address }).collect()
}

/// The named frontends of a balancer, in the balancer's order: the one added first comes first.
fn frontends_in_order(
    objects: &Objects,
    balancer: &LoadBalancer,
    is_named: impl Fn(&str) -> bool,
) -> Vec<Frontend> {
    balancer
        .properties
        .frontend_ip_configurations
        .iter()
        .filter(|frontend| is_named(&frontend.name))
        .flat_map(|frontend| frontend_addresses(objects, frontend))
        .collect()
}

fn references(reference: Option<&SubResource>, name: &str) -> bool {
    reference.is_some_and(|reference| reference.name().eq_ignore_ascii_case(name))
}

/// Rules of Standard balancers that give egress as a side effect, with the size of their pool.
fn snat_rules<'a>(
    balancer: &'a LoadBalancer,
    pool: &'a str,
    protocol: Protocol,
) -> impl Iterator<Item = &'a LoadBalancingRule> + 'a {
    let standard = is_standard(balancer);
    balancer.properties.load_balancing_rules.iter().filter(move |rule| {
        let properties = &rule.properties;
        references(properties.backend_address_pool.as_ref(), pool)
            && (!standard
                || (properties.disable_outbound_snat != Some(true)
                    && protocol.is_covered_by(&properties.protocol)))
    })
}

fn implicit_frontends(asked: &Asked<'_>) -> Option<(String, Vec<Frontend>, u32)> {
    for (balancer, pool, members) in asked.members.pools_of(asked.objects, asked.node) {
        let names: BTreeSet<&str> = snat_rules(balancer, pool, asked.protocol)
            .filter_map(|rule| rule.properties.frontend_ip_configuration.as_ref())
            .map(SubResource::name)
            .collect();
        let mut frontends =
            frontends_in_order(asked.objects, balancer, |name| names.contains(name));
        if !is_standard(balancer) {
            // Basic uses exactly one: the one added first that still exists.
            frontends.truncate(1);
        }
        frontends.truncate(SEGMENTS_MAX);
        if !frontends.is_empty() {
            return Some((balancer.name.clone(), frontends, members));
        }
    }
    None
}

fn outbound_rule(asked: &Asked<'_>, why: &mut Vec<Step>) -> Option<Outbound> {
    const QUESTION: &str = "Does an outbound rule cover the node's pool and the protocol?";
    let covering = |rule: &&OutboundRule, pool: &str| {
        references(rule.properties.backend_address_pool.as_ref(), pool)
            && asked.protocol.is_covered_by(&rule.properties.protocol)
    };
    let found = asked
        .members
        .pools_of(asked.objects, asked.node)
        .filter(|(balancer, _, _)| is_standard(balancer))
        .find_map(|(balancer, pool, members)| {
            let rules = &balancer.properties.outbound_rules;
            let rule = rules.iter().find(|rule| covering(rule, pool))?;
            let named = |name: &str| {
                let references = &rule.properties.frontend_ip_configurations;
                references.iter().any(|reference| reference.name().eq_ignore_ascii_case(name))
            };
            let mut frontends = frontends_in_order(asked.objects, balancer, named);
            frontends.truncate(SEGMENTS_MAX);
            (!frontends.is_empty()).then_some((balancer, rule, frontends, members))
        });
    let Some((balancer, rule, frontends, members)) = found else {
        ask(why, QUESTION, false, "none");
        return None;
    };
    let addresses: Vec<String> =
        frontends.iter().map(|frontend| frontend.address.to_string()).collect();
    let found = format!(
        "{} of {}, {} node(s), {}",
        rule.name,
        balancer.name,
        members,
        addresses.join(", ")
    );
    ask(why, QUESTION, true, found);
    let mut outbound = Outbound::new(Method::OutboundRule);
    outbound.via = Some(format!("{}/{}", balancer.name, rule.name));
    outbound.idle_timeout_in_minutes =
        rule.properties.idle_timeout_in_minutes.unwrap_or(IDLE_MINUTES_DEFAULT);
    outbound.enable_tcp_reset = rule.properties.enable_tcp_reset.unwrap_or(false);
    let allocated = rule.properties.allocated_outbound_ports.unwrap_or(0);
    let (ports, shape) = match allocated {
        0 => (table_ports(asked.settings, members, frontends.len() as u32), Shape::Aligned),
        ports => (ports, Shape::Runs),
    };
    let own: BTreeSet<Ipv4Addr> = frontends.iter().map(|frontend| frontend.address).collect();
    outbound = outbound.with_demand(frontends, ports, shape);
    // Rules with SNAT on the same pool add their frontends; a shared frontend is no addition.
    if let Some((_, mut more, members)) = implicit_frontends(asked) {
        more.retain(|frontend| !own.contains(&frontend.address));
        more.truncate(SEGMENTS_MAX.saturating_sub(own.len()));
        if !more.is_empty() {
            let ports = table_ports(asked.settings, members, more.len() as u32);
            let found = format!("{} more frontend(s)", more.len());
            ask(why, "Do load-balancing rules with SNAT add to it?", true, found);
            outbound = outbound.with_demand(more, ports, Shape::Aligned);
        }
    }
    Some(outbound)
}

fn implicit_snat(asked: &Asked<'_>, why: &mut Vec<Step>) -> Option<Outbound> {
    const QUESTION: &str = "Does a load-balancing rule give the node's pool SNAT?";
    let Some((balancer, frontends, members)) = implicit_frontends(asked) else {
        ask(why, QUESTION, false, "none");
        return None;
    };
    let names: Vec<String> = frontends
        .iter()
        .map(|frontend| format!("{} ({})", frontend.name, frontend.address))
        .collect();
    ask(why, QUESTION, true, format!("{balancer}: frontend {}", names.join(", ")));
    let mut outbound = Outbound::new(Method::ImplicitSnat);
    outbound.via = Some(balancer);
    let ports = table_ports(asked.settings, members, frontends.len() as u32);
    Some(outbound.with_demand(frontends, ports, Shape::Aligned))
}

fn default_outbound(asked: &Asked<'_>, why: &mut Vec<Step>) -> Option<Outbound> {
    const QUESTION: &str = "May the node use a default outbound address?";
    let objects = asked.objects;
    let cluster = objects.cluster();
    if cluster.outbound_type == OutboundType::None {
        ask(why, QUESTION, false, "outboundType is none");
        return None;
    }
    if let Some(found) = asked.members.standard_in_group(objects, asked.node) {
        ask(why, QUESTION, false, found);
        return None;
    }
    let network = objects.node_networks.get(asked.node);
    let drawn = network.and_then(|network| network.spec.default_outbound_ip());
    let frontends: Vec<Frontend> = drawn
        .map(|address| Frontend { name: "default outbound".into(), address })
        .into_iter()
        .collect();
    let found = match frontends.first() {
        Some(frontend) => format!("{} was drawn for {}", frontend.address, asked.node),
        None => "yes; its address has not been drawn yet".into(),
    };
    ask(why, QUESTION, true, found);
    // The address is one machine's: a pool of one.
    let ports = table_ports(asked.settings, 1, 1);
    Some(Outbound::new(Method::DefaultOutbound).with_demand(frontends, ports, Shape::Aligned))
}
