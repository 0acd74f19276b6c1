//! What goes when a Service goes, moves or wants less: its rules and probes, frontends that nobody
//! needs any more, and public IPs that were made for them. What somebody else still uses stays.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ProviderConfig;
use super::intent::Intent;
use super::names;
use super::public_ips;
use super::security_group::Claims;
use super::service::{Decision, is_same_rule};
use super::state::{State, owned};
use crate::resources::{FrontendIPConfiguration, SubResource};

/// Which Service owns what starts with a prefix (in lower case).
pub type Owners = BTreeMap<String, Owner>;

/// A Service that is asked for.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    /// `namespace/name`.
    pub key: String,
    /// Its frontends by load balancer and name, in lower case; none: not decided yet.
    pub frontends: Option<BTreeSet<(String, String)>>,
}

/// Removes rules, probes and frontends of the Service that are not what is wanted. Returns the
/// frontends that the removed rules used; empty means that no rule was removed.
pub fn remove_stale(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    intent: &Intent,
    decision: &Decision,
) -> BTreeSet<String> {
    let Some(balancer) = state.balancers.get(key) else { return BTreeSet::new() };
    let prefix = &intent.prefix;
    let rules: Vec<String> = owned(balancer.rules.starting_with(prefix), prefix)
        .into_iter()
        .filter(|name| {
            let wanted = decision.rules.iter().find(|rule| rule.name.eq_ignore_ascii_case(name));
            let present = balancer.rules.get(name);
            !wanted.zip(present).is_some_and(|(wanted, present)| is_same_rule(present, wanted))
        })
        .collect();
    let probes: Vec<String> = owned(balancer.probes.starting_with(prefix), prefix)
        .into_iter()
        .filter(|name| !decision.probes.iter().any(|p| p.name.eq_ignore_ascii_case(name)))
        .collect();
    let frontends: Vec<String> = owned(balancer.frontends.starting_with(prefix), prefix)
        .into_iter()
        .filter(|name| {
            !decision.placements.iter().any(|place| place.frontend.eq_ignore_ascii_case(name))
        })
        .collect();
    let left = frontends_of(state, key, &rules);
    for name in rules {
        state.remove_rule(key, &name);
    }
    for name in probes {
        state.remove_probe(key, &name);
    }
    for name in frontends {
        remove_frontend_if_unused(state, config, key, &name);
    }
    left
}

/// The frontends that rules use.
fn frontends_of(state: &State, key: &str, rules: &[String]) -> BTreeSet<String> {
    let Some(balancer) = state.balancers.get(key) else { return BTreeSet::new() };
    let rules = rules.iter().filter_map(|name| balancer.rules.get(name));
    let frontends = rules.filter_map(|rule| rule.properties.frontend_ip_configuration.as_ref());
    frontends.map(|frontend| frontend.name().to_owned()).collect()
}

/// Tidies a load balancer after rules left `frontends`: those that only the rules kept go, as do
/// the shared probe and the IPv6 pool if nothing uses them.
pub fn tidy(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    frontends: &BTreeSet<String>,
    owners: &Owners,
) {
    remove_unused_shared_probe(state, key);
    for name in frontends {
        if is_orphan(state, config, key, name, owners) {
            remove_frontend_if_unused(state, config, key, name);
        }
    }
    if !frontends.is_empty() {
        remove_unused_ipv6_pool(state, key);
    }
}

fn remove_unused_shared_probe(state: &mut State, key: &str) {
    let unused = state.balancers.get(key).is_some_and(|balancer| {
        let probe = balancer.probes.get(names::SHARED_PROBE);
        probe.is_some_and(|probe| probe.properties.load_balancing_rules.is_empty())
    });
    if unused {
        state.remove_probe(key, names::SHARED_PROBE);
    }
}

/// The IPv6 pool came with the first IPv6 rule and goes with the last one.
fn remove_unused_ipv6_pool(state: &mut State, key: &str) {
    let Some(balancer) = state.balancers.get(key) else { return };
    let Some(pool) = balancer.pools.iter().find(|pool| {
        pool.name.ends_with(names::IPV6_SUFFIX)
            && !pool.name.to_lowercase().starts_with("aksoutbound")
    }) else {
        return;
    };
    let name = pool.name.clone();
    let is_used = balancer.rules.iter().any(|rule| {
        let used = rule.properties.backend_address_pool.as_ref();
        used.is_some_and(|used| used.name().eq_ignore_ascii_case(&name))
    });
    if !is_used {
        state.remove_pool(key, &name);
    }
}

/// The prefix of the Service that a frontend was made for, in lower case; none if it was made by
/// somebody else.
pub fn frontend_owner(
    frontend: &FrontendIPConfiguration,
    config: &ProviderConfig,
) -> Option<String> {
    let prefix = frontend.name.split('-').next().unwrap_or(&frontend.name).to_lowercase();
    let ip = frontend.properties.public_ip_address.as_ref().map(SubResource::name);
    let own = format!("{}-{prefix}", config.cluster).to_lowercase();
    let has_own_ip = ip.is_some_and(|ip| names::is_owned(&ip.to_lowercase(), &own));
    (names::is_service_frontend(&frontend.name) || has_own_ip).then_some(prefix)
}

/// Whether a frontend was made for a Service that needs it no more.
fn is_orphan(
    state: &State,
    config: &ProviderConfig,
    key: &str,
    name: &str,
    owners: &Owners,
) -> bool {
    let balancer = state.balancers.get(key);
    let Some(frontend) = balancer.and_then(|balancer| balancer.frontends.get(name)) else {
        return false;
    };
    let Some(prefix) = frontend_owner(frontend, config) else { return false };
    match owners.get(&prefix).map(|owner| &owner.frontends) {
        None => true,
        Some(None) => false,
        Some(Some(frontends)) => !frontends.contains(&(key.to_owned(), name.to_lowercase())),
    }
}

/// Removes a frontend that nothing uses, and its public IP if that was made for Services and none
/// of them is left.
pub fn remove_frontend_if_unused(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    name: &str,
) {
    let Some(balancer) = state.balancers.get(key) else { return };
    let Some(frontend) = balancer.frontends.get(name).filter(|found| !balancer.is_used(found))
    else {
        return;
    };
    let ip = frontend.properties.public_ip_address.clone();
    state.remove_frontend(key, name);
    let Some(ip) = ip else { return };
    let ip_key = ip.name().to_lowercase();
    let is_left = state.public_ips.get(&ip_key).is_some_and(|ip| {
        let cluster = ip.tags.get(public_ips::CLUSTER_TAG);
        ip.tags.contains_key(public_ips::SERVICE_TAG)
            && public_ips::services(ip).is_empty()
            && cluster.is_some_and(|cluster| cluster.eq_ignore_ascii_case(&config.cluster))
            && ip.properties.ip_configuration.is_none()
    });
    if is_left {
        state.remove_public_ip(&ip_key);
    }
}

/// Takes the Service from public IPs but the `wanted`; those that nobody uses any more go.
pub fn release_public_ips(state: &mut State, service: &str, wanted: &BTreeSet<String>) {
    for key in state.public_ips_of(service) {
        if wanted.contains(&key) {
            continue;
        }
        state.edit_public_ip(&key, |ip| public_ips::unbind(ip, service));
        let is_free = state.public_ips.get(&key).is_some_and(|ip| {
            public_ips::is_user_created(ip) && ip.properties.ip_configuration.is_none()
        });
        if is_free {
            state.remove_public_ip(&key);
        }
    }
}

/// A frontend that outlives the Service whose name it bears, because somebody else's rule is on it.
pub struct Kept {
    /// Its id.
    pub id: String,
    /// Name of its load balancer.
    balancer: String,
}

impl Kept {
    /// What the Service is told.
    pub fn warning(&self) -> String {
        format!(
            "Warning DeletingFrontendIPConfiguration: frontend IP configuration with ID {} on \
             LB {} cannot be deleted because it is being referenced by rules of others",
            self.id, self.balancer
        )
    }
}

/// Removes everything of the Service with this prefix from a load balancer. Returns the frontends
/// that somebody else keeps, if the Service had rules: one without has left them before.
pub fn remove_from_balancer(
    state: &mut State,
    config: &ProviderConfig,
    key: &str,
    prefix: &str,
    owners: &Owners,
) -> Vec<Kept> {
    let Some(balancer) = state.balancers.get(key) else { return Vec::new() };
    let rules = owned(balancer.rules.starting_with(prefix), prefix);
    let probes = owned(balancer.probes.starting_with(prefix), prefix);
    let own = owned(balancer.frontends.starting_with(prefix), prefix);
    if rules.is_empty() && probes.is_empty() && own.is_empty() {
        return Vec::new();
    }
    let had_rules = !rules.is_empty();
    let mut left = frontends_of(state, key, &rules);
    left.retain(|name| !names::is_owned(name, prefix));
    for name in rules {
        state.remove_rule(key, &name);
    }
    for name in probes {
        state.remove_probe(key, &name);
    }
    let mut kept = Vec::new();
    for name in own {
        remove_frontend_if_unused(state, config, key, &name);
        let Some(balancer) = state.balancers.get(key) else { continue };
        let frontend = balancer.frontends.get(&name).filter(|_| had_rules);
        kept.extend(frontend.map(|frontend| Kept {
            id: frontend.id.clone(),
            balancer: balancer.head.name.clone(),
        }));
    }
    tidy(state, config, key, &left, owners);
    remove_unused_ipv6_pool(state, key);
    state.remove_balancer_if_bare(key);
    kept
}

/// Whether there is anything of a Service that would go with it. A frontend that others keep is
/// theirs by now.
pub fn has_remains(state: &State, config: &ProviderConfig, prefix: &str, service: &str) -> bool {
    let on_balancer = |internal: bool| {
        let Some(balancer) = state.balancer(&config.load_balancer(internal)) else { return false };
        let rules = owned(balancer.rules.starting_with(prefix), prefix);
        let frontends = owned(balancer.frontends.starting_with(prefix), prefix);
        let mut frontends = frontends.iter().filter_map(|name| balancer.frontends.get(name));
        !rules.is_empty() || frontends.any(|frontend| !balancer.is_used(frontend))
    };
    !state.public_ips_of(service).is_empty() || on_balancer(false) || on_balancer(true)
}

/// Removes everything that the Service left, on every load balancer.
pub fn remove(
    state: &mut State,
    config: &ProviderConfig,
    prefix: &str,
    service: Option<&str>,
    old: &Claims,
    owners: &Owners,
) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut journal = std::mem::take(&mut state.journal);
    state.is_touched |= state.security_group.replace(old, &Vec::new(), &mut journal);
    state.journal = journal;
    if !prefix.is_empty() {
        for internal in [false, true] {
            let key = config.load_balancer(internal).to_lowercase();
            kept.extend(remove_from_balancer(state, config, &key, prefix, owners));
        }
    }
    if let Some(service) = service {
        release_public_ips(state, service, &BTreeSet::new());
    }
    kept
}
