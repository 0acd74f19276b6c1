//! Brings the resources in line with one Service, or takes away what one left. First everything
//! is decided and checked, then everything is edited: a Service that is refused has changed
//! nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::access;
use super::annotations::Refusal;
use super::backends;
use super::config::ProviderConfig;
use super::frontends::{self, Placement, PublicPlacement};
use super::intent::{Intent, PublicSource};
use super::limits;
use super::names::{self, Family};
use super::public_ips;
use super::removal::{self, Owners};
use super::rules;
use super::security_group::{Claims, claims};
use super::state::{Balancer, State, owned, private_address};
use crate::cluster::Limits;
use crate::resources::{
    BackendAddress, BackendAddressPool, BackendAddressPoolProperties, LoadBalancingRule, Probe,
    SubResource,
};

/// The nodes as the planner sees them.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    /// Members of the IPv4 pool.
    pub v4: Vec<BackendAddress>,
    /// Members of the IPv6 pool.
    pub v6: Vec<BackendAddress>,
    /// Addresses of the members.
    pub addresses: Vec<IpAddr>,
    /// Address families of the cluster, its first choice first.
    pub families: Vec<Family>,
    /// Names of nodes that could not be read: they stay members of the pools that they are in.
    pub unreadable: BTreeSet<String>,
}

impl Backends {
    /// Members of the pool of `family`.
    pub fn of(&self, family: Family) -> &[BackendAddress] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Everything that a Service will have, decided and checked.
pub struct Decision {
    /// Name of the load balancer.
    pub balancer: String,
    /// The frontend of each family.
    pub placements: Vec<Placement>,
    /// Rules.
    pub rules: Vec<LoadBalancingRule>,
    /// Probes.
    pub probes: Vec<Probe>,
}

/// Decides what `intent` gets. Nothing is edited.
pub fn decide(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    old: &Claims,
    backends: &Backends,
) -> Result<Decision, Refusal> {
    let balancer = config.load_balancer(intent.internal);
    let mut decision = Decision {
        balancer: balancer.clone(),
        placements: Vec::new(),
        rules: Vec::new(),
        probes: Vec::new(),
    };
    let known = state.balancer(&balancer);
    let id = frontends::balancer_id(config, &balancer, known);
    for index in 0..intent.families.len() {
        let placement = frontends::place(state, config, intent, index)?;
        let target = rules::Target {
            balancer_id: &id,
            frontend: &placement.frontend,
            family: placement.family,
        };
        let (rules, probes) = rules::wanted(intent, &target, config);
        if let Some(known) = known {
            frontends::check_conflicts(known, intent, &rules, &placement.frontend)?;
        }
        decision.rules.extend(rules);
        for probe in probes {
            if !decision.probes.iter().any(|made| made.name == probe.name) {
                decision.probes.push(probe);
            }
        }
        decision.placements.push(placement);
    }
    check_addresses(state, intent, &decision)?;
    limits::check(state, config, intent, &decision.rules, &decision.placements)?;
    if config.limits == Limits::Azure {
        // The destinations are not all known before addresses are drawn, but their number is.
        let guess = destinations(intent, &vec![None; decision.placements.len()], backends);
        state.security_group.check(old, &access::wanted(intent, &guess))?;
    }
    Ok(decision)
}

/// There must be an address for every public IP that will be made.
fn check_addresses(state: &State, intent: &Intent, decision: &Decision) -> Result<(), Refusal> {
    for family in [Family::V4, Family::V6] {
        let new = decision.placements.iter().zip(&intent.public).filter(|(place, source)| {
            let is_new = place.public_ip.as_ref().is_some_and(|public| public.is_new);
            // Whether a prefix has room was asked where the prefix was read.
            is_new && place.family == family && !matches!(source, PublicSource::Prefix(_))
        });
        if !state.pool.has_free(family, new.count()) {
            return Err(Refusal(format!(
                "no free {} address for a public IP of {}: add addresses to a PublicIPPool",
                family.as_str(),
                intent.key
            )));
        }
    }
    Ok(())
}

/// Where packets for the Service go when the security group sees them. An address that is not
/// drawn yet stands for itself as an address that nothing else has.
fn destinations(intent: &Intent, own: &[Option<IpAddr>], backends: &Backends) -> Vec<IpAddr> {
    let mut destinations = intent.additional_ips.clone();
    if intent.floating_ip {
        for (family, address) in intent.families.iter().zip(own) {
            destinations.push(address.unwrap_or(match family {
                Family::V4 => IpAddr::from([0, 0, 0, 0]),
                Family::V6 => IpAddr::from([0u16; 8]),
            }));
        }
    } else {
        let nodes = backends.addresses.iter().copied();
        destinations.extend(nodes.filter(|ip| intent.families.contains(&Family::of(*ip))));
    }
    destinations
}

/// What carrying out a [`Decision`] gave.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Addresses for the status.
    pub addresses: Vec<IpAddr>,
    /// Security rules that the Service now wants.
    pub claims: Claims,
    /// Frontends that others keep: warnings.
    pub kept: Vec<String>,
}

/// Carries out a decision.
pub fn apply(
    state: &mut State,
    config: &ProviderConfig,
    intent: &Intent,
    decision: Decision,
    old: &Claims,
    backends: &Backends,
    owners: &Owners,
) -> Given {
    let key = decision.balancer.to_lowercase();
    let left = removal::remove_stale(state, config, &key, intent, &decision);
    for placement in &decision.placements {
        if let Some(public) = &placement.public_ip {
            ensure_public_ip(state, config, intent, placement.family, public);
        }
    }
    state.ensure_balancer(&decision.balancer, config);
    let has_rules = intent.ha_ports || intent.ports.iter().any(|port| port.has_rule);
    for family in &intent.families {
        // The IPv6 pool is there as long as a rule uses it.
        if *family == Family::V4 || has_rules {
            ensure_pool(state, config, &key, *family, intent.internal, backends);
        }
    }
    add_frontends(state, &key, &decision.placements);
    for probe in decision.probes {
        let balancer = state.balancers.get(&key);
        let known = balancer.and_then(|balancer| balancer.probes.get(&probe.name));
        if !known.is_some_and(|known| is_same_probe(known, &probe)) {
            state.add_probe(&key, probe);
        }
    }
    for rule in decision.rules {
        let balancer = state.balancers.get(&key);
        if balancer.is_some_and(|balancer| balancer.rules.get(&rule.name).is_none()) {
            state.add_rule(&key, rule);
        }
    }
    removal::tidy(state, config, &key, &left, owners);
    let other = config.load_balancer(!intent.internal).to_lowercase();
    let kept = removal::remove_from_balancer(state, config, &other, &intent.prefix, owners);
    let wanted: BTreeSet<String> = decision
        .placements
        .iter()
        .filter_map(|placement| Some(placement.public_ip.as_ref()?.name.to_lowercase()))
        .collect();
    removal::release_public_ips(state, &intent.key, &wanted);
    let own: Vec<Option<IpAddr>> = decision
        .placements
        .iter()
        .map(|placement| frontend_address(state, &key, &placement.frontend))
        .collect();
    let wanted = access::wanted(intent, &destinations(intent, &own, backends));
    let mut journal = std::mem::take(&mut state.journal);
    state.is_touched |= state.security_group.replace(old, &wanted, &mut journal);
    state.journal = journal;
    let mut addresses: Vec<IpAddr> = own.into_iter().flatten().collect();
    addresses.extend(&intent.additional_ips);
    let kept = kept.iter().map(removal::Kept::warning).collect();
    Given { addresses, claims: claims(&wanted), kept }
}

/// Adds the frontends that are new, each with an address of its subnet where it draws one.
fn add_frontends(state: &mut State, balancer: &str, placements: &[Placement]) {
    for placement in placements {
        if let Some(mut frontend) = placement.new_frontend.clone() {
            if placement.draws_address {
                let subnet = frontend.properties.subnet.as_ref();
                let subnet = subnet.map_or(String::new(), |subnet| subnet.name.clone());
                let address = state.subnets.next(&subnet, placement.family);
                frontend.properties.private_ip_address = address.map(|ip| ip.to_string());
            }
            state.add_frontend(balancer, frontend);
        }
    }
}

/// The address of a frontend.
pub fn frontend_address(state: &State, balancer: &str, frontend: &str) -> Option<IpAddr> {
    let frontend = state.balancers.get(balancer)?.frontends.get(frontend)?;
    if let Some(address) = private_address(frontend) {
        return Some(address);
    }
    let ip = state.public_ip(frontend.properties.public_ip_address.as_ref()?.name())?;
    ip.properties.ip_address.as_ref()?.parse().ok()
}

fn is_same_reference(a: &Option<SubResource>, b: &Option<SubResource>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.id.eq_ignore_ascii_case(&b.id),
        (a, b) => a.is_none() == b.is_none(),
    }
}

/// Whether a rule is what is wanted.
pub fn is_same_rule(present: &LoadBalancingRule, wanted: &LoadBalancingRule) -> bool {
    let (a, b) = (&present.properties, &wanted.properties);
    is_same_reference(&a.frontend_ip_configuration, &b.frontend_ip_configuration)
        && is_same_reference(&a.backend_address_pool, &b.backend_address_pool)
        && is_same_reference(&a.probe, &b.probe)
        && a.protocol.eq_ignore_ascii_case(&b.protocol)
        && (a.frontend_port, a.backend_port) == (b.frontend_port, b.backend_port)
        && a.enable_floating_ip.unwrap_or(false) == b.enable_floating_ip.unwrap_or(false)
        && a.enable_tcp_reset == b.enable_tcp_reset
        && a.disable_outbound_snat.unwrap_or(false) == b.disable_outbound_snat.unwrap_or(false)
        && a.idle_timeout_in_minutes == b.idle_timeout_in_minutes
        && a.load_distribution == b.load_distribution
}

fn is_same_probe(present: &Probe, wanted: &Probe) -> bool {
    let (a, b) = (&present.properties, &wanted.properties);
    a.port == b.port
        && a.protocol.eq_ignore_ascii_case(&b.protocol)
        && a.request_path == b.request_path
        && a.interval_in_seconds == b.interval_in_seconds
        && a.probe_threshold == b.probe_threshold
}

/// Makes the public IP, or brings its tags, SKU and DNS label up to date.
fn ensure_public_ip(
    state: &mut State,
    config: &ProviderConfig,
    intent: &Intent,
    family: Family,
    public: &PublicPlacement,
) {
    let key = public.name.to_lowercase();
    if public.is_new {
        // The frontend of one that is made anew stays where it is.
        let user = state.public_ips.get(&key).and_then(|ip| ip.properties.ip_configuration.clone());
        state.remove_public_ip(&key);
        let mut ip = public_ips::new(config, public.id.clone(), &public.name, family);
        let index = intent.families.iter().position(|known| *known == family);
        let source = index.and_then(|index| intent.public.get(index));
        if let Some(PublicSource::Prefix(id)) = source {
            public_ips::set_prefix(&mut ip, id);
        }
        ip.tags.insert(public_ips::CLUSTER_TAG.to_owned(), config.cluster.clone());
        public_ips::bind(&mut ip, &intent.key);
        let address = state.draw_for(&ip);
        ip.properties.ip_address = address.map(|address| address.to_string());
        ip.properties.ip_configuration = user;
        ip.properties.ip_tags = intent.ip_tags.clone().unwrap_or_default();
        public_ips::apply_tags(&mut ip.tags, config, &intent.tags);
        if let Some(label) = intent.dns_label.as_deref().filter(|label| !label.is_empty()) {
            public_ips::set_dns(&mut ip, label, &intent.key);
        }
        state.add_public_ip(ip);
        return;
    }
    state.edit_public_ip(&key, |ip| {
        let is_user_created = public_ips::is_user_created(ip);
        if config.standard {
            let sku = ip.sku.get_or_insert_with(|| crate::resources::Sku::named("Standard"));
            if !sku.name.eq_ignore_ascii_case("Standard") {
                "Standard".clone_into(&mut sku.name);
            }
        }
        if !is_user_created {
            public_ips::bind(ip, &intent.key);
            let services = public_ips::services(ip);
            let is_first =
                services.first().is_some_and(|first| first.eq_ignore_ascii_case(&intent.key));
            let mut tags = intent.tags.clone();
            if !is_first {
                // Of several Services the first decides; the others only add. Else two of them
                // would write their own value in turns.
                tags.retain(|name, _| {
                    !ip.tags.keys().any(|known| known.eq_ignore_ascii_case(name))
                });
            }
            public_ips::apply_tags(&mut ip.tags, config, &tags);
            if let Some(tags) = intent.ip_tags.as_ref().filter(|_| is_first) {
                let mut current = ip.properties.ip_tags.clone();
                current.sort();
                if config.mutate_ip_tags && current != *tags {
                    ip.properties.ip_tags.clone_from(tags);
                }
            }
        }
        match intent.dns_label.as_deref() {
            None => {}
            Some("") => public_ips::clear_dns(ip),
            Some(label) => public_ips::set_dns(ip, label, &intent.key),
        }
    });
}

/// Makes sure that the pool is there; who is in it follows the nodes.
fn ensure_pool(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    family: Family,
    internal: bool,
    backends: &Backends,
) {
    let Some(balancer) = state.balancers.get(key) else { return };
    let name = names::pool(&config.cluster, family);
    if balancer.pools.get(&name).is_some_and(|pool| {
        !pool.properties.load_balancer_backend_addresses.is_empty()
            || backends.of(family).is_empty()
    }) {
        return;
    }
    let id = format!("{}/backendAddressPools/{name}", balancer.head.id);
    let known = balancer.pools.get(&name).cloned();
    let pool = known.unwrap_or(BackendAddressPool {
        id,
        name,
        properties: BackendAddressPoolProperties::default(),
    });
    let pool = if is_preconfigured(config, internal) {
        pool
    } else {
        with_members(pool, backends.of(family), &backends.unreadable, config)
    };
    state.set_pool(key, pool);
}

/// Whether somebody else says who is in the pools of this kind of load balancer.
pub fn is_preconfigured(config: &ProviderConfig, internal: bool) -> bool {
    match config.preconfigured_pools.as_deref() {
        Some("all") => true,
        Some("internal") => internal,
        Some("external") => !internal,
        _ => false,
    }
}

/// `pool` with its members brought up to date; nodes that could not be read stay.
pub fn with_members(
    mut pool: BackendAddressPool,
    wanted: &[BackendAddress],
    unreadable: &BTreeSet<String>,
    config: &ProviderConfig,
) -> BackendAddressPool {
    let properties = &mut pool.properties;
    let current = &properties.load_balancer_backend_addresses;
    let kept = current.iter().filter(|member| unreadable.contains(&member.name));
    let wanted: Vec<BackendAddress> = wanted.iter().chain(kept).cloned().collect();
    let members = backends::members(current, &wanted);
    if !members.is_empty() && properties.virtual_network.is_none() {
        let place = config.place_in(&config.vnet_resource_group);
        properties.virtual_network =
            Some(SubResource::new(place.id("virtualNetworks", &config.vnet)));
    }
    properties.load_balancer_backend_addresses = members;
    pool
}

/// Rules of the Service with this prefix.
pub fn owned_rules<'a>(
    balancer: &'a Balancer,
    prefix: &'a str,
) -> impl Iterator<Item = &'a LoadBalancingRule> {
    let names = owned(balancer.rules.starting_with(prefix), prefix);
    names.into_iter().filter_map(|name| balancer.rules.get(&name))
}

/// Names of the frontends that the Service with this prefix owns.
pub fn owned_frontends<'a>(balancer: &'a Balancer, prefix: &str) -> impl Iterator<Item = &'a str> {
    let names = owned(balancer.frontends.starting_with(prefix), prefix);
    names.into_iter().filter_map(|name| Some(balancer.frontends.get(&name)?.name.as_str()))
}
