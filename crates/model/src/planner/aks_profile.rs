//! What AKS refuses of a cluster's egress settings, by its own error names, and the arithmetic of
//! outbound ports.

use std::collections::BTreeMap;

use datapath::limits::SEGMENTS_MAX;

use super::annotations::Refusal;
use super::backends;
use super::config::ProviderConfig;
use super::names::Family;
use super::public_ips;
use super::state::State;
use crate::cluster::{ClusterNetwork, LoadBalancerProfile, NodePool, OutboundType};
use crate::kubernetes::Node;
use crate::resources::{SubResource, last_segment};

/// Ports of one outbound address.
pub const PORTS_PER_ADDRESS: u64 = 64_000;

/// Above this many nodes Azure's table of ports ends; each node then has [`LAST_TABLE_PORTS`].
const TABLE_NODES: u64 = 1_000;

/// Ports of a node in the last row of Azure's table.
const LAST_TABLE_PORTS: u64 = 32;

/// A public IP or prefix for egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its id.
    pub id: String,
    /// Whether it is a prefix.
    pub is_prefix: bool,
}

/// Where egress addresses of one family come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    /// This many are made here.
    Managed(usize),
    /// The customer made them.
    Given(Vec<Source>),
}

/// Where the egress addresses of `family` come from.
pub fn sources(state: &State, profile: &LoadBalancerProfile, family: Family) -> Sources {
    let given_ips = profile.outbound_ips.as_ref().map(|given| &given.public_ips);
    if let Some(ips) = given_ips.filter(|ips| !ips.is_empty()) {
        let ips = ips.iter().filter_map(|ip| state.public_ip(ip.name()));
        let ips = ips.filter(|ip| public_ips::family(ip) == family);
        return Sources::Given(
            ips.map(|ip| Source { id: ip.id.clone(), is_prefix: false }).collect(),
        );
    }
    let given = profile.outbound_ip_prefixes.as_ref().map(|given| &given.public_ip_prefixes);
    if let Some(prefixes) = given.filter(|prefixes| !prefixes.is_empty()) {
        let known = |prefix: &SubResource| {
            let prefix = state.prefixes.get(&prefix.name().to_lowercase())?;
            let net = prefix.properties.ip_prefix.as_ref()?.parse::<ipnet::IpNet>().ok()?;
            let id = prefix.id.clone();
            (Family::of(net.network()) == family).then_some(Source { id, is_prefix: true })
        };
        return Sources::Given(prefixes.iter().filter_map(known).collect());
    }
    let counts = profile.managed_outbound_ips.clone().unwrap_or_default();
    let count = match family {
        Family::V4 => counts.count.unwrap_or(1),
        Family::V6 => counts.count_ipv6.unwrap_or(0),
    };
    Sources::Managed(usize::try_from(count).unwrap_or(0))
}

/// Refuses what AKS refuses.
pub fn check(
    state: &State,
    config: &ProviderConfig,
    cluster: &ClusterNetwork,
    nodes: &[Node],
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let spec = &cluster.spec;
    let kind = spec.outbound_type;
    let profile = spec.load_balancer_profile.as_ref();
    if !config.standard && (profile.is_some() || kind != OutboundType::LoadBalancer) {
        let what = if profile.is_some() {
            "spec.loadBalancerProfile".to_owned()
        } else {
            format!("spec.outboundType {kind}")
        };
        return Err(Refusal(format!(
            "UnexpectedLoadBalancerSkuForCurrentOutboundConfiguration: {what} needs spec.sku \
             Standard: change the SKU or remove it"
        )));
    }
    if kind == OutboundType::UserDefinedRouting && profile.is_some() {
        return Err(Refusal::new(
            "InvalidUserDefinedRoutingWithLoadBalancerProfile: spec.loadBalancerProfile and \
             spec.outboundType userDefinedRouting exclude each other: remove the profile",
        ));
    }
    match kind {
        OutboundType::LoadBalancer => {
            let profile = profile.cloned().unwrap_or_default();
            check_profile(state, config, &profile)?;
            check_ports(state, &profile, cluster, nodes)
        }
        OutboundType::ManagedNatGateway => {
            warn_of_profile(profile, kind, warnings);
            check_nat_profile(state, cluster)
        }
        OutboundType::UserAssignedNatGateway => {
            warn_of_profile(profile, kind, warnings);
            check_user_gateway(state, cluster, warnings)
        }
        OutboundType::UserDefinedRouting => check_routes(state, warnings),
        OutboundType::None => {
            warn_of_profile(profile, kind, warnings);
            Ok(())
        }
    }
}

fn warn_of_profile(
    profile: Option<&LoadBalancerProfile>,
    kind: OutboundType,
    warnings: &mut Vec<String>,
) {
    if profile.is_some() {
        warnings.push(format!(
            "ClusterNetwork default: spec.loadBalancerProfile has no effect with outboundType \
             {kind}"
        ));
    }
}

fn check_profile(
    state: &State,
    config: &ProviderConfig,
    profile: &LoadBalancerProfile,
) -> Result<(), Refusal> {
    if profile.enable_multiple_standard_load_balancers == Some(true) {
        return Err(Refusal::new(
            "InvalidLoadBalancerProfile: enableMultipleStandardLoadBalancers: several standard \
             load balancers per cluster are not supported: remove it",
        ));
    }
    let ips = profile.outbound_ips.as_ref();
    let prefixes = profile.outbound_ip_prefixes.as_ref();
    let given = [
        ("managedOutboundIPs", profile.managed_outbound_ips.is_some()),
        ("outboundIPs", ips.is_some()),
        ("outboundIPPrefixes", prefixes.is_some()),
    ];
    let given: Vec<&str> = given.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if given.len() > 1 {
        return Err(Refusal(format!(
            "InvalidLoadBalancerProfileIPProvider: {} are set: exactly one of managedOutboundIPs, \
             outboundIPs and outboundIPPrefixes may be",
            given.join(" and ")
        )));
    }
    if ips.is_some_and(|ips| ips.public_ips.is_empty()) {
        return Err(Refusal::new(
            "InvalidLoadBalancerProfileIPProvider: outboundIPs.publicIPs is empty: list ids of \
             public IPs",
        ));
    }
    if prefixes.is_some_and(|prefixes| prefixes.public_ip_prefixes.is_empty()) {
        return Err(Refusal::new(
            "InvalidLoadBalancerProfileIPPrefixProvider: outboundIPPrefixes.publicIPPrefixes is \
             empty: list ids of public IP prefixes",
        ));
    }
    check_numbers(profile)?;
    check_counts(state, profile)?;
    if given.is_empty() {
        check_room(state, Family::V4, Some(1))?;
    }
    for ip in ips.into_iter().flat_map(|ips| &ips.public_ips) {
        check_outbound_ip(state, config, ip)?;
    }
    for prefix in prefixes.into_iter().flat_map(|prefixes| &prefixes.public_ip_prefixes) {
        if !state.prefixes.contains_key(&prefix.name().to_lowercase()) {
            return Err(Refusal(format!(
                "LoadBalancerProfileOutboundIPPrefixNotExist: outboundIPPrefixes {:?}: there is \
                 no such public IP prefix: create it first",
                prefix.id
            )));
        }
    }
    Ok(())
}

/// Refuses counts of managed addresses that a node could not use, or for which there is no room.
fn check_counts(state: &State, profile: &LoadBalancerProfile) -> Result<(), Refusal> {
    let Some(counts) = &profile.managed_outbound_ips else { return Ok(()) };
    // A node draws ports of no more addresses.
    let most = SEGMENTS_MAX as i64;
    for (field, count, min) in [("count", counts.count, 1), ("countIPv6", counts.count_ipv6, 0)] {
        if let Some(count) = count.filter(|count| !(min..=most).contains(count)) {
            return Err(Refusal(format!(
                "InvalidLoadBalancerProfileManagedOutboundIPCount: managedOutboundIPs.{field} \
                 {count}: must be {min} to {most}: a node leaves by at most {most} addresses"
            )));
        }
    }
    for (family, count) in [(Family::V4, counts.count), (Family::V6, counts.count_ipv6)] {
        check_room(state, family, count)?;
    }
    Ok(())
}

/// Idle time-out and ports of a profile.
fn check_numbers(profile: &LoadBalancerProfile) -> Result<(), Refusal> {
    if let Some(minutes) = profile.idle_timeout_in_minutes.filter(|m| !(4..=120).contains(m)) {
        return Err(Refusal(format!(
            "InvalidLoadBalancerProfileIdleTimeoutInMinutes: idleTimeoutInMinutes {minutes}: must \
             be 4 to 120"
        )));
    }
    if let Some(ports) = profile.allocated_outbound_ports {
        let bad = |sub: &str, why: &str| {
            Err(Refusal(format!(
                "InvalidLoadBalancerProfileAllocatedOutboundPorts: \
                 AllocatedOutboundPorts{sub}: allocatedOutboundPorts {ports}: {why}"
            )))
        };
        if ports < 0 {
            return bad("CannotBeNegative", "must be 0 to 64000");
        }
        if ports > 64_000 {
            return bad("ExceedsMaximum", "must be 0 to 64000");
        }
        if ports % 8 != 0 {
            let next = (ports / 8 + 1) * 8;
            return bad("MustBeMultipleOfEight", &format!("write {} or {next}", ports / 8 * 8));
        }
    }
    Ok(())
}

/// The pool must have the addresses that are still to be made.
fn check_room(state: &State, family: Family, count: Option<i64>) -> Result<(), Refusal> {
    let wanted = usize::try_from(count.unwrap_or(0)).unwrap_or(0);
    let present = state.public_ips.values().filter(|ip| {
        public_ips::family(ip) == family
            && ip.tags.get(super::aks::MANAGED_TAG).map(String::as_str)
                == Some(super::aks::MANAGED_OUTBOUND)
    });
    let missing = wanted.saturating_sub(present.count());
    if state.pool.has_free(family, missing) {
        return Ok(());
    }
    Err(Refusal(format!(
        "ManagedOutboundIPCountExceedsQuotaLimit: managedOutboundIPs: {missing} more {} addresses \
         are needed than the pool has: add addresses to a PublicIPPool",
        family.as_str()
    )))
}

fn check_outbound_ip(
    state: &State,
    config: &ProviderConfig,
    reference: &SubResource,
) -> Result<(), Refusal> {
    let bad = |error: &str, why: &str| {
        Err(Refusal(format!(
            "LoadBalancerProfileOutboundIP{error}: outboundIPs {:?}: {why}",
            reference.id
        )))
    };
    let Some(ip) = state.public_ip(last_segment(&reference.id)) else {
        return bad("NotExist", "there is no such public IP: create it first");
    };
    if !ip.sku.as_ref().is_some_and(|sku| sku.name.eq_ignore_ascii_case("Standard")) {
        return bad("NotStandardSKU", "must have SKU Standard");
    }
    if !ip.location.is_empty() && !ip.location.eq_ignore_ascii_case(&config.location) {
        return bad("NotInTheSameRegion", &format!("must be in {}", config.location));
    }
    let managed = ip.tags.get(super::aks::MANAGED_TAG);
    if managed.is_some_and(|value| value == super::aks::MANAGED_OUTBOUND) {
        return bad("HasManagedOutboundIPTag", "is managed here: make one of your own");
    }
    let key = config.load_balancer(false);
    let user = ip.properties.ip_configuration.as_ref();
    let is_ours = |user: &SubResource| {
        let balancer = state.balancer(&key);
        balancer.is_some_and(|balancer| balancer.frontends.get(user.name()).is_some())
    };
    if let Some(user) = user.filter(|user| !is_ours(user)).or(ip.properties.nat_gateway.as_ref()) {
        return bad("AttachedToAnotherIPConfiguration", &format!("is in use by {}", user.id));
    }
    Ok(())
}

/// AKS counts the nodes that there may be: of each pool the larger of its present and its largest
/// size, and those that an upgrade adds.
fn check_ports(
    state: &State,
    profile: &LoadBalancerProfile,
    cluster: &ClusterNetwork,
    nodes: &[Node],
) -> Result<(), Refusal> {
    let mut addresses: u64 = 0;
    match sources(state, profile, Family::V4) {
        Sources::Managed(count) => addresses += u64::try_from(count).unwrap_or(0),
        Sources::Given(given) => {
            for source in given {
                let prefix = state.prefixes.get(&last_segment(&source.id).to_lowercase());
                let net = prefix.and_then(|prefix| prefix.properties.ip_prefix.as_ref());
                let net = net.and_then(|net| net.parse::<ipnet::IpNet>().ok());
                let bits = net.filter(|_| source.is_prefix);
                let bits = bits.map_or(0, |net| u32::from(net.max_prefix_len() - net.prefix_len()));
                addresses = addresses.saturating_add(1u64.checked_shl(bits).unwrap_or(u64::MAX));
            }
        }
    }
    if addresses > SEGMENTS_MAX as u64 {
        return Err(Refusal(format!(
            "TooManyOutboundIPs: {addresses} outbound addresses: a node leaves by at most \
             {SEGMENTS_MAX}: name fewer in outboundIPs and outboundIPPrefixes"
        )));
    }
    let ports = u64::try_from(profile.allocated_outbound_ports.unwrap_or(0)).unwrap_or(0);
    let nodes = nodes_at_most(&cluster.spec.node_pools, nodes)?;
    let per_node = match ports {
        0 if nodes > TABLE_NODES => LAST_TABLE_PORTS,
        0 => return Ok(()),
        ports => ports,
    };
    let needed = nodes.saturating_mul(per_node);
    let available = addresses.saturating_mul(PORTS_PER_ADDRESS);
    if needed <= available {
        return Ok(());
    }
    let needed_addresses = needed.div_ceil(PORTS_PER_ADDRESS);
    Err(Refusal(format!(
        "InvalidLoadBalancerProfileAllocatedOutboundPorts: InsufficientOutboundPorts: {per_node} \
         ports x {nodes} nodes = {needed} > {PORTS_PER_ADDRESS} x {addresses} outbound IPs = \
         {available} (nodes: the larger of present and maximum size of each pool, and its surge): \
         use {needed_addresses} outbound IPs, or at most {} ports",
        (available / nodes.max(1)) / 8 * 8
    )))
}

/// The most nodes that there may be.
fn nodes_at_most(pools: &[NodePool], nodes: &[Node]) -> Result<u64, Refusal> {
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for node in nodes {
        *counted.entry(backends::pool(node).unwrap_or_default()).or_default() += 1;
    }
    let mut total: u64 = 0;
    for pool in pools {
        let count = |field: &str, value: Option<i64>| match value {
            None => Ok(None),
            Some(value) => u64::try_from(value).map(Some).map_err(|_| {
                Refusal(format!(
                    "spec.nodePools {:?}: {field} {value}: must not be negative",
                    pool.name
                ))
            }),
        };
        let present = match count("count", pool.count)? {
            Some(count) => count,
            None if pools.len() == 1 => u64::try_from(nodes.len()).unwrap_or(u64::MAX),
            None => counted.get(pool.name.as_str()).copied().unwrap_or(0),
        };
        let size = present.max(count("maxCount", pool.max_count)?.unwrap_or(0));
        total = total.saturating_add(size.saturating_add(surge(pool, size)?));
    }
    if pools.is_empty() {
        for count in counted.values() {
            total = total.saturating_add(count + 1);
        }
    }
    Ok(total)
}

/// Nodes that an upgrade adds to a pool: a number, or a part of it; one if nothing is said.
fn surge(pool: &NodePool, size: u64) -> Result<u64, Refusal> {
    let bad = |value: &serde_json::Value| {
        Refusal(format!(
            "spec.nodePools {:?}: maxSurge {value}: must be a number of nodes or a percentage \
             such as \"33%\"",
            pool.name
        ))
    };
    match &pool.max_surge {
        None | Some(serde_json::Value::Null) => Ok(1),
        Some(value @ serde_json::Value::Number(number)) => {
            number.as_u64().ok_or_else(|| bad(value))
        }
        Some(value @ serde_json::Value::String(text)) => match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent: u64 = percent.trim().parse().map_err(|_| bad(value))?;
                Ok(size.saturating_mul(percent).div_ceil(100))
            }
            None => text.trim().parse().map_err(|_| bad(value)),
        },
        Some(value) => Err(bad(value)),
    }
}

fn check_nat_profile(state: &State, cluster: &ClusterNetwork) -> Result<(), Refusal> {
    let profile = cluster.spec.nat_gateway_profile.clone().unwrap_or_default();
    let counts = profile.managed_outbound_ip_profile.unwrap_or_default();
    let count = counts.count.unwrap_or(1);
    if !(1..=16).contains(&count) {
        return Err(Refusal(format!(
            "InvalidNATGatewayProfileManagedOutboundIPCount: managedOutboundIPProfile.count \
             {count}: must be 1 to 16"
        )));
    }
    if let Some(minutes) = profile.idle_timeout_in_minutes.filter(|m| !(4..=120).contains(m)) {
        return Err(Refusal(format!(
            "InvalidNATGatewayProfileIdleTimeoutInMinutes: idleTimeoutInMinutes {minutes}: must \
             be 4 to 120"
        )));
    }
    let present = state.public_ips.values().filter(|ip| {
        ip.tags.get(super::aks::MANAGED_TAG).map(String::as_str) == Some(super::aks::MANAGED_NAT)
    });
    let missing = usize::try_from(count).unwrap_or(1).saturating_sub(present.count());
    if !state.pool.has_free(Family::V4, missing) {
        return Err(Refusal(format!(
            "ManagedOutboundIPCountExceedsQuotaLimit: natGatewayProfile: {missing} more addresses \
             are needed than the pool has: add addresses to a PublicIPPool"
        )));
    }
    Ok(())
}

fn check_user_gateway(
    state: &State,
    cluster: &ClusterNetwork,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let profile = cluster.spec.nat_gateway_profile.clone().unwrap_or_default();
    let gateway = match &profile.nat_gateway {
        Some(wanted) => match state.nat_gateways.get(&wanted.name().to_lowercase()) {
            Some(gateway) => gateway,
            None => {
                return Err(Refusal(format!(
                    "NATGatewayNotFound: natGatewayProfile.natGateway {:?}: there is no such NAT \
                     gateway: create it first",
                    wanted.id
                )));
            }
        },
        None => {
            let mut others =
                state.nat_gateways.iter().filter(|(key, _)| *key != super::aks::NAT_GATEWAY);
            let Some((_, gateway)) = others.next() else {
                warnings.push(
                    "ClusterNetwork default: outboundType userAssignedNATGateway: no NAT gateway \
                     is known here: the subnet must have one, or nothing leaves"
                        .to_owned(),
                );
                return Ok(());
            };
            gateway
        }
    };
    let properties = &gateway.properties;
    if properties.public_ip_addresses.is_empty() && properties.public_ip_prefixes.is_empty() {
        return Err(Refusal(format!(
            "NATGatewayNotAssociatedWithPublicIPOrIPPrefix: NAT gateway {}: give it a public IP \
             or a prefix",
            gateway.name
        )));
    }
    Ok(())
}

/// Of route tables that are known, one must lead everything to an appliance.
fn check_routes(state: &State, warnings: &mut Vec<String>) -> Result<(), Refusal> {
    if state.route_tables.is_empty() {
        warnings.push(
            "ClusterNetwork default: outboundType userDefinedRouting: no route table is known \
             here: the subnet's must lead 0.0.0.0/0 to an appliance, or nothing leaves"
                .to_owned(),
        );
        return Ok(());
    }
    let mut routes = state.route_tables.values().flat_map(|table| &table.properties.routes);
    let Some(route) = routes.find(|route| route.properties.address_prefix == "0.0.0.0/0") else {
        return Err(Refusal::new(
            "RouteTableMissingDefaultRouteError: no route table has a route 0.0.0.0/0: add one to \
             the appliance",
        ));
    };
    let hop = &route.properties.next_hop_type;
    if hop.eq_ignore_ascii_case("Internet") || hop.eq_ignore_ascii_case("None") {
        return Err(Refusal(format!(
            "RouteTableInvalidNextHop: route {}: next hop {hop}: must be VirtualAppliance or \
             VirtualNetworkGateway",
            route.name
        )));
    }
    Ok(())
}
