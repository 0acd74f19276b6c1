//! What AKS does around its cloud provider: the resources of a new cluster, egress by
//! `outboundType`, and what it refuses of a `loadBalancerProfile`, by AKS's own error names.
//!
//! A Standard cluster with `outboundType: loadBalancer` has from its creation on a load balancer
//! with outbound rule `aksOutboundRule` over pool `aksOutboundBackendPool` (every node) and managed
//! public IPs; every other cluster has nothing until its first Service, but for a NAT gateway that
//! is to be managed here. Settings of the outbound rule are goal state: edits of others are undone.

use super::annotations::Refusal;
use super::backends;
use super::changes::{Action, Change};
use super::config::ProviderConfig;
use super::names::{self, Family};
use super::public_ips;
use super::removal;
use super::service::with_members;
use super::state::State;
use super::{ClusterPlan, Plan, PlanInput, aks_profile};
use crate::cluster::{ClusterNetwork, LoadBalancerProfile, LoadBalancerSku, OutboundType};
use crate::kubernetes::Node;
use crate::resources::{
    BackendAddress, BackendAddressPool, FrontendIPConfiguration, FrontendIPConfigurationProperties,
    NatGateway, NatGatewayProperties, OutboundRule, OutboundRuleProperties, PublicIPAddress, Sku,
    SubResource, last_segment,
};

/// Tag that says what AKS made a public IP for.
pub const MANAGED_TAG: &str = "aks-managed-type";

/// Value of [`MANAGED_TAG`]: egress of the load balancer.
pub const MANAGED_OUTBOUND: &str = "aks-slb-managed-outbound-ip";

/// Value of [`MANAGED_TAG`]: egress of the NAT gateway.
pub const MANAGED_NAT: &str = "aks-nat-gateway-managed-outbound-ip";

/// The NAT gateway that is managed here.
pub const NAT_GATEWAY: &str = "aks-natgateway";

/// Lets the cluster's settings decide what the provider's leave open.
pub(super) fn settle_config(config: &mut ProviderConfig, input: &PlanInput, step: &mut Plan) {
    let Some(cluster) = &input.cluster else { return };
    let mut standard = cluster.spec.sku == LoadBalancerSku::Standard;
    let present = input.resources.load_balancer(&config.load_balancer(false));
    let was_standard = present
        .and_then(|balancer| balancer.sku.as_ref())
        .is_some_and(|sku| sku.name.eq_ignore_ascii_case("Standard"));
    if was_standard && !standard {
        refuse(
            step,
            cluster,
            "InvalidLoadBalancerSku: spec.sku: a cluster cannot go from Standard back to Basic: \
             write Standard",
        );
        standard = true;
    }
    if input.given.sku && config.standard != standard {
        step.warnings.push(format!(
            "{}: spec.sku {} wins over loadBalancerSku of the provider configuration",
            subject(cluster),
            if standard { "Standard" } else { "Basic" }
        ));
    }
    config.standard = standard;
    if !standard {
        config.disable_outbound_snat = false;
    } else if !input.given.disable_outbound_snat {
        config.disable_outbound_snat = true;
    }
    if let Some(limits) = cluster.spec.limits {
        config.limits = limits;
    }
}

fn subject(cluster: &ClusterNetwork) -> String {
    let name = &cluster.metadata.name;
    format!("ClusterNetwork {}", if name.is_empty() { "default" } else { name })
}

fn refuse(step: &mut Plan, cluster: &ClusterNetwork, why: &str) {
    step.refused.push(format!("{}: {why}", subject(cluster)));
}

/// A Basic load balancer of a cluster that is Standard now is made anew with its Services.
pub(super) fn replace_basic(state: &mut State, config: &ProviderConfig) {
    if !config.standard {
        return;
    }
    for internal in [false, true] {
        let key = config.load_balancer(internal).to_lowercase();
        let is_basic = state.balancers.get(&key).is_some_and(|balancer| {
            let sku = balancer.head.sku.as_ref();
            sku.is_some_and(|sku| sku.name.eq_ignore_ascii_case("Basic"))
        });
        if is_basic {
            state.remove_balancer(&key);
        }
    }
}

/// Brings egress in line with the cluster's settings.
pub(super) fn reconcile(
    state: &mut State,
    config: &ProviderConfig,
    cluster: &ClusterNetwork,
    input: &PlanInput,
    before: Option<&ClusterPlan>,
    step: &mut Plan,
) -> ClusterPlan {
    let nodes = &input.nodes;
    if let Some(why) = &input.cluster_unreadable {
        refuse(step, cluster, why);
    }
    let was = outbound_type_before(state, config, before);
    let wanted = cluster.spec.outbound_type;
    let was_refused = step.refused.iter().any(|line| line.starts_with(&subject(cluster)));
    match aks_profile::check(state, config, cluster, nodes, &mut step.warnings) {
        _ if was_refused => {}
        Err(Refusal(why)) => refuse(step, cluster, &why),
        Ok(()) => {
            let lost = addresses_in_use(state);
            set_egress(state, config, cluster, input);
            note_type_change(state, was, wanted, &lost, cluster, step);
            if was == Some(wanted) {
                note_lost_addresses(state, &lost, cluster, step);
            }
        }
    }
    let is_refused = step.refused.iter().any(|line| line.starts_with(&subject(cluster)));
    let events = if is_refused {
        let why = step.refused.iter().filter(|line| line.starts_with(&subject(cluster)));
        why.map(|line| format!("Warning ClusterNetworkRefused: {line}")).collect()
    } else {
        Vec::new()
    };
    let in_force = if is_refused { was.unwrap_or(wanted) } else { wanted };
    ClusterPlan {
        sku: config.sku().to_owned(),
        outbound_type: in_force.as_str().to_owned(),
        effective_outbound_ips: addresses_in_use(state),
        events,
    }
}

/// The outbound type that an earlier plan names, else the one that the resources show.
fn outbound_type_before(
    state: &State,
    config: &ProviderConfig,
    before: Option<&ClusterPlan>,
) -> Option<OutboundType> {
    if let Some(known) = before.and_then(|before| before.outbound_type.parse().ok()) {
        return Some(known);
    }
    let balancer = state.balancer(&config.load_balancer(false));
    if balancer.is_some_and(|b| b.outbound_rules.get(names::AKS_OUTBOUND_RULE).is_some()) {
        return Some(OutboundType::LoadBalancer);
    }
    state.nat_gateways.contains_key(NAT_GATEWAY).then_some(OutboundType::ManagedNatGateway)
}

/// Addresses of the outbound rule and of NAT gateways.
fn addresses_in_use(state: &State) -> Vec<String> {
    let mut references = Vec::new();
    for balancer in state.balancers.values() {
        for rule in balancer.outbound_rules.iter() {
            for frontend in &rule.properties.frontend_ip_configurations {
                let frontend = balancer.frontends.get(frontend.name());
                let Some(frontend) = frontend else { continue };
                references.extend(frontend.properties.public_ip_address.clone());
                references.extend(frontend.properties.public_ip_prefix.clone());
            }
        }
    }
    for gateway in state.nat_gateways.values() {
        references.extend(gateway.properties.public_ip_addresses.iter().cloned());
        references.extend(gateway.properties.public_ip_prefixes.iter().cloned());
    }
    let mut addresses: Vec<String> = Vec::new();
    for reference in references {
        let key = reference.name().to_lowercase();
        let ip = state.public_ips.get(&key).and_then(|ip| ip.properties.ip_address.clone());
        let net = state.prefixes.get(&key).and_then(|net| net.properties.ip_prefix.clone());
        addresses.extend(ip.or(net).filter(|address| !addresses.contains(address)));
    }
    addresses
}

/// Says in the plan what a change of the outbound type breaks.
fn note_type_change(
    state: &State,
    was: Option<OutboundType>,
    wanted: OutboundType,
    before: &[String],
    cluster: &ClusterNetwork,
    step: &mut Plan,
) {
    let Some(was) = was.filter(|was| *was != wanted) else { return };
    let after = addresses_in_use(state);
    let gone: Vec<&str> =
        before.iter().filter(|ip| !after.contains(ip)).map(String::as_str).collect();
    let mut breaks = Vec::new();
    let leaves_by = match wanted {
        OutboundType::LoadBalancer | OutboundType::ManagedNatGateway => {
            format!("egress leaves by {}", after.join(", "))
        }
        OutboundType::UserAssignedNatGateway => {
            "egress leaves by the addresses of the NAT gateway on the subnet".to_owned()
        }
        OutboundType::UserDefinedRouting => {
            "egress leaves by the appliance that the subnet's route table names".to_owned()
        }
        OutboundType::None => "nothing gives the nodes egress any more".to_owned(),
    };
    breaks.push(format!(
        "{leaves_by}: allow-lists of partners, firewalls and authorized IP ranges that name the \
         old addresses must be updated"
    ));
    if !gone.is_empty() {
        breaks.push(format!(
            "{} released: connections through it end, and it must stay off allow-lists",
            gone.join(", ")
        ));
    }
    match (was, wanted) {
        (OutboundType::UserDefinedRouting, OutboundType::None) => {}
        (OutboundType::UserDefinedRouting, _) => breaks.push(
            "a route 0.0.0.0/0 to an appliance still comes first: take the route table from the \
             subnet"
                .to_owned(),
        ),
        (OutboundType::UserAssignedNatGateway, OutboundType::LoadBalancer) => breaks.push(
            "a NAT gateway on the subnet still comes before the outbound rule: take it from the \
             subnet"
                .to_owned(),
        ),
        (_, OutboundType::UserDefinedRouting) => breaks.push(
            "answers to connections from outside leave by the appliance too, which drops what it \
             has not seen coming in: let the appliance receive them, or use internal Services"
                .to_owned(),
        ),
        _ => {}
    }
    let name = &cluster.metadata.name;
    let name = if name.is_empty() { "default" } else { name };
    step.changes.push(Change {
        action: Action::Changed,
        resource: format!("clusternetworks/{name}").to_lowercase(),
        field: Some("spec.outboundType".to_owned()),
        from: Some(was.as_str().into()),
        to: Some(wanted.as_str().into()),
        breaks,
    });
}

/// Says in the plan which addresses drain.
fn note_lost_addresses(
    state: &State,
    before: &[String],
    cluster: &ClusterNetwork,
    step: &mut Plan,
) {
    let after = addresses_in_use(state);
    let lost: Vec<&str> =
        before.iter().filter(|ip| !after.contains(ip)).map(String::as_str).collect();
    if lost.is_empty() {
        return;
    }
    let breaks = vec![format!(
        "{} drained: no new connection leaves by it, those that are open live on until they end; \
         one that is managed here is released then, or an idle time-out after the last new one \
         could begin",
        lost.join(", ")
    )];
    let name = &cluster.metadata.name;
    let name = if name.is_empty() { "default" } else { name };
    step.changes.push(Change {
        action: Action::Changed,
        resource: format!("clusternetworks/{name}").to_lowercase(),
        field: Some("status.effectiveOutboundIPs".to_owned()),
        from: Some(before.into()),
        to: Some(after.into()),
        breaks,
    });
}

/// Edits resources so that egress is as wanted.
fn set_egress(
    state: &mut State,
    config: &ProviderConfig,
    cluster: &ClusterNetwork,
    input: &PlanInput,
) {
    let by_balancer = config.standard && cluster.spec.outbound_type == OutboundType::LoadBalancer;
    let managed = cluster.spec.outbound_type == OutboundType::ManagedNatGateway;
    // What is new comes before what is old goes.
    if by_balancer {
        set_outbound_rules(state, config, cluster, input);
    }
    if managed {
        set_nat_gateway(state, config, cluster);
    } else {
        remove_nat_gateway(state);
    }
    if !by_balancer {
        remove_outbound_rules(state, config);
    }
}

/// The pool, the outbound rule and its frontends, for each family that has addresses.
fn set_outbound_rules(
    state: &mut State,
    config: &ProviderConfig,
    cluster: &ClusterNetwork,
    input: &PlanInput,
) {
    let name = config.load_balancer(false);
    let key = name.to_lowercase();
    let profile = cluster.spec.load_balancer_profile.clone().unwrap_or_default();
    state.ensure_balancer(&name, config);
    let balancer_id = state.balancers.get(&key).map(|b| b.head.id.clone()).unwrap_or_default();
    let mut stale: Vec<String> = Vec::new();
    let mut kept: Vec<String> = Vec::new();
    for family in [Family::V4, Family::V6] {
        let suffix = if family == Family::V6 { "-ipv6" } else { "" };
        let rule_name = format!("{}{suffix}", names::AKS_OUTBOUND_RULE);
        let pool_name = format!("{}{suffix}", names::AKS_OUTBOUND_POOL);
        let sources = aks_profile::sources(state, &profile, family);
        let sources = match sources {
            aks_profile::Sources::Managed(count) => {
                managed_ips(state, config, family, count, MANAGED_OUTBOUND, "aks-outbound")
            }
            aks_profile::Sources::Given(given) => given,
        };
        let known = state.balancers.get(&key).and_then(|b| b.outbound_rules.get(&rule_name));
        let old: Vec<String> = known.map_or(Vec::new(), |rule| {
            let frontends = rule.properties.frontend_ip_configurations.iter();
            frontends.map(|frontend| frontend.name().to_owned()).collect()
        });
        stale.extend(old);
        if sources.is_empty() {
            state.remove_outbound_rule(&key, &rule_name);
            state.remove_pool(&key, &pool_name);
            continue;
        }
        let members = every_node(&input.nodes, family);
        let pool = pool(state, &key, &balancer_id, &pool_name);
        let pool = with_members(pool, &members, &input.unreadable_nodes, config);
        state.set_pool(&key, pool);
        let mut frontends = Vec::new();
        for source in sources {
            let frontend = outbound_frontend(state, &key, &balancer_id, &source);
            kept.push(frontend.name().to_owned());
            frontends.push(frontend);
        }
        let rule = outbound_rule(&balancer_id, &rule_name, &pool_name, frontends, &profile);
        state.set_outbound_rule(&key, rule);
    }
    // The pool of Services is there from the start, as AKS makes it.
    let name = names::pool(&config.cluster, Family::V4);
    let members = service_nodes(&input.nodes, config);
    let pool = pool(state, &key, &balancer_id, &name);
    state.set_pool(&key, with_members(pool, &members, &input.unreadable_nodes, config));
    stale.retain(|name| !kept.contains(name));
    remove_outbound_frontends(state, config, &key, &stale);
    remove_drained_ips(state, MANAGED_OUTBOUND);
}

fn outbound_rule(
    balancer_id: &str,
    name: &str,
    pool: &str,
    frontends: Vec<SubResource>,
    profile: &LoadBalancerProfile,
) -> OutboundRule {
    let pool = SubResource::new(format!("{balancer_id}/backendAddressPools/{pool}"));
    OutboundRule {
        id: format!("{balancer_id}/outboundRules/{name}"),
        name: name.to_owned(),
        properties: OutboundRuleProperties {
            frontend_ip_configurations: frontends,
            backend_address_pool: Some(pool),
            protocol: "All".to_owned(),
            allocated_outbound_ports: Some(as_u32(profile.allocated_outbound_ports, 0)),
            idle_timeout_in_minutes: Some(as_u32(profile.idle_timeout_in_minutes, 30)),
            enable_tcp_reset: Some(true),
            ..OutboundRuleProperties::default()
        },
    }
}

fn as_u32(value: Option<i64>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default)
}

/// Egress is for every node, also for one that gets nothing from Services.
fn every_node(nodes: &[Node], family: Family) -> Vec<BackendAddress> {
    let mut sorted: Vec<&Node> = nodes.iter().collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    sorted.into_iter().filter_map(|node| Some(backends::member(node, family)?.1)).collect()
}

fn service_nodes(nodes: &[Node], config: &ProviderConfig) -> Vec<BackendAddress> {
    let mut sorted: Vec<&Node> =
        nodes.iter().filter(|node| backends::is_backend(node, config)).collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    sorted.into_iter().filter_map(|node| Some(backends::member(node, Family::V4)?.1)).collect()
}

/// The pool of that name, as it is or made new.
fn pool(state: &State, key: &str, balancer_id: &str, name: &str) -> BackendAddressPool {
    let known = state.balancers.get(key).and_then(|balancer| balancer.pools.get(name)).cloned();
    known.unwrap_or_else(|| BackendAddressPool {
        id: format!("{balancer_id}/backendAddressPools/{name}"),
        name: name.to_owned(),
        ..BackendAddressPool::default()
    })
}

/// The frontend that has the public IP or prefix with this id, made if there is none.
fn outbound_frontend(
    state: &mut State,
    key: &str,
    balancer_id: &str,
    source: &aks_profile::Source,
) -> SubResource {
    let name = last_segment(&source.id).to_owned();
    let known = state.balancers.get(key).and_then(|balancer| {
        balancer.frontends.iter().find(|frontend| {
            let properties = &frontend.properties;
            let reference = if source.is_prefix {
                &properties.public_ip_prefix
            } else {
                &properties.public_ip_address
            };
            reference.as_ref().is_some_and(|found| found.id.eq_ignore_ascii_case(&source.id))
        })
    });
    if let Some(known) = known {
        return SubResource::new(known.id.clone());
    }
    let reference = Some(SubResource::new(source.id.clone()));
    let id = format!("{balancer_id}/frontendIPConfigurations/{name}");
    let mut properties = FrontendIPConfigurationProperties::default();
    if source.is_prefix {
        properties.public_ip_prefix = reference;
    } else {
        properties.public_ip_address = reference;
    }
    let frontend =
        FrontendIPConfiguration { id: id.clone(), name, properties, ..Default::default() };
    state.add_frontend(key, frontend);
    SubResource::new(id)
}

/// Exactly `count` public IPs with this tag: those that are there, the used ones first, then new
/// ones. The rest goes as soon as nothing uses it.
fn managed_ips(
    state: &mut State,
    config: &ProviderConfig,
    family: Family,
    count: usize,
    tag: &str,
    name: &str,
) -> Vec<aks_profile::Source> {
    let mut present: Vec<(bool, usize, String)> = state
        .public_ips
        .iter()
        .filter(|(_, ip)| {
            public_ips::family(ip) == family
                && ip.tags.get(MANAGED_TAG).is_some_and(|value| value == tag)
        })
        .map(|(key, ip)| {
            let frontend = ip.properties.ip_configuration.as_ref().and_then(|user| {
                state.balancers.values().find_map(|b| b.frontends.get(user.name()))
            });
            let has_rules = frontend
                .is_some_and(|frontend| !frontend.properties.load_balancing_rules.is_empty());
            // Length before text: the tenth comes after the second.
            (!has_rules, key.len(), key.clone())
        })
        .collect();
    present.sort();
    present.truncate(count);
    // Who uses them says which are kept, not in which order they stand.
    present.sort_by(|a, b| (a.1, &a.2).cmp(&(b.1, &b.2)));
    let mut keys: Vec<String> = present.into_iter().map(|(_, _, key)| key).collect();
    let suffix = if family == Family::V6 { "-ipv6" } else { "" };
    let mut number = 1;
    // BOUND: every number is either taken by a public IP or taken now.
    while keys.len() < count {
        let name = format!("{name}{suffix}-{number}");
        number += 1;
        if state.public_ips.contains_key(&name) {
            continue;
        }
        let id = config.place().id("publicIPAddresses", &name);
        let mut ip = public_ips::new(config, id, &name, family);
        let address = state.draw_for(&ip);
        ip.properties.ip_address = address.map(|address| address.to_string());
        ip.tags.insert(MANAGED_TAG.to_owned(), tag.to_owned());
        public_ips::apply_tags(&mut ip.tags, config, &Default::default());
        keys.push(name);
        state.add_public_ip(ip);
    }
    let ids = keys.iter().filter_map(|key| Some(state.public_ips.get(key)?.id.clone()));
    ids.map(|id| aks_profile::Source { id, is_prefix: false }).collect()
}

/// Removes outbound frontends that nothing uses, and their public IPs if those were managed here.
fn remove_outbound_frontends(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    frontends: &[String],
) {
    for name in frontends {
        let Some(balancer) = state.balancers.get(key) else { return };
        let Some(frontend) = balancer.frontends.get(name) else { continue };
        if balancer.is_used(frontend) {
            continue;
        }
        removal::remove_frontend_if_unused(state, config, key, name);
    }
}

/// Removes managed public IPs that nothing uses, once no flow is left on them.
fn remove_drained_ips(state: &mut State, tag: &str) {
    let is_kept = |ip: &PublicIPAddress| {
        let address = ip.properties.ip_address.as_ref().and_then(|text| text.parse().ok());
        address.is_some_and(|address| state.kept.contains(&address))
    };
    let unused = unused_managed_ips(state, tag);
    let drained: Vec<String> = unused
        .into_iter()
        .filter(|key| state.public_ips.get(key).is_some_and(|ip| !is_kept(ip)))
        .collect();
    drained.iter().for_each(|key| state.remove_public_ip(key));
}

/// Removes managed public IPs with their way out: the flows on them end.
fn remove_unused_ips(state: &mut State, tag: &str) {
    unused_managed_ips(state, tag).iter().for_each(|key| state.remove_public_ip(key));
}

fn unused_managed_ips(state: &State, tag: &str) -> Vec<String> {
    let unused = state.public_ips.iter().filter(|(_, ip)| {
        ip.tags.get(MANAGED_TAG).is_some_and(|value| value == tag)
            && ip.properties.ip_configuration.is_none()
            && ip.properties.nat_gateway.is_none()
    });
    unused.map(|(key, _)| key.clone()).collect()
}

/// Takes egress from the load balancer; the balancer goes too if no Service uses it.
fn remove_outbound_rules(state: &mut State, config: &ProviderConfig) {
    let key = config.load_balancer(false).to_lowercase();
    for suffix in ["", "-ipv6"] {
        let name = format!("{}{suffix}", names::AKS_OUTBOUND_RULE);
        let Some(balancer) = state.balancers.get(&key) else { return };
        let Some(rule) = balancer.outbound_rules.get(&name) else { continue };
        let frontends: Vec<String> = rule
            .properties
            .frontend_ip_configurations
            .iter()
            .map(|frontend| frontend.name().to_owned())
            .collect();
        state.remove_outbound_rule(&key, &name);
        state.remove_pool(&key, &format!("{}{suffix}", names::AKS_OUTBOUND_POOL));
        remove_outbound_frontends(state, config, &key, &frontends);
    }
    remove_unused_ips(state, MANAGED_OUTBOUND);
    state.remove_balancer_if_bare(&key);
}

fn set_nat_gateway(state: &mut State, config: &ProviderConfig, cluster: &ClusterNetwork) {
    let profile = cluster.spec.nat_gateway_profile.clone().unwrap_or_default();
    let counts = profile.managed_outbound_ip_profile.unwrap_or_default();
    let count = usize::try_from(counts.count.unwrap_or(1)).unwrap_or(1);
    let id = config.place().id("natGateways", NAT_GATEWAY);
    let ips = managed_ips(state, config, Family::V4, count, MANAGED_NAT, "aks-natgateway-ip");
    let wanted: Vec<SubResource> = ips.iter().map(|ip| SubResource::new(ip.id.clone())).collect();
    for ip in &wanted {
        let key = ip.name().to_lowercase();
        state.edit_public_ip(&key, |ip| {
            ip.properties.nat_gateway = Some(SubResource::new(id.clone()));
        });
    }
    let known = state.nat_gateways.get(NAT_GATEWAY);
    let old = known.map_or(Vec::new(), |known| known.properties.public_ip_addresses.clone());
    let mut gateway = known.cloned().unwrap_or_else(|| NatGateway {
        id,
        name: NAT_GATEWAY.to_owned(),
        location: config.location.clone(),
        sku: Some(Sku::named("Standard")),
        ..NatGateway::default()
    });
    gateway.properties = NatGatewayProperties {
        public_ip_addresses: wanted.clone(),
        idle_timeout_in_minutes: Some(as_u32(profile.idle_timeout_in_minutes, 4)),
        subnets: vec![SubResource::new(super::state::subnet_id(config, &config.subnet))],
        ..gateway.properties
    };
    state.set_nat_gateway(NAT_GATEWAY, Some(gateway));
    for ip in old.into_iter().filter(|ip| !wanted.contains(ip)) {
        leave_gateway(state, &ip);
    }
    remove_drained_ips(state, MANAGED_NAT);
}

fn leave_gateway(state: &mut State, ip: &SubResource) {
    state.edit_public_ip(&ip.name().to_lowercase(), |ip| ip.properties.nat_gateway = None);
}

fn remove_nat_gateway(state: &mut State) {
    let Some(gateway) = state.nat_gateways.get(NAT_GATEWAY) else { return };
    let ips = gateway.properties.public_ip_addresses.clone();
    state.set_nat_gateway(NAT_GATEWAY, None);
    ips.iter().for_each(|ip| leave_gateway(state, ip));
    remove_unused_ips(state, MANAGED_NAT);
}
