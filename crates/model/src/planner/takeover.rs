//! How a load balancer that already exists is taken over: ids are completed, and references back
//! are written as they follow from its rules.

use std::collections::BTreeMap;

use super::config::ProviderConfig;
use super::state::{Balancer, subnet_id};
use crate::resources::{
    FrontendIPConfiguration, LoadBalancer, LoadBalancerProperties, Sku, SubResource, last_segment,
};

/// Writes an id in full where it is missing or cut short.
pub fn complete(id: &mut String, full: impl FnOnce() -> String) {
    if !id.starts_with('/') {
        *id = full();
    }
}

/// Writes a reference in full, to the cluster's own place, where it is cut short.
pub fn complete_reference(reference: &mut SubResource, kind: &str, config: &ProviderConfig) {
    if !reference.id.starts_with('/') {
        reference.id = config.place().id(kind, last_segment(&reference.id));
    }
}

/// Takes over a load balancer: full ids everywhere, back references as they follow from the rules.
pub fn read_balancer(key: &str, mut head: LoadBalancer, config: &ProviderConfig) -> Balancer {
    if head.name.is_empty() {
        key.clone_into(&mut head.name);
    }
    let place = config.place_in(&config.load_balancer_resource_group);
    complete(&mut head.id, || place.id("loadBalancers", &head.name));
    if head.location.is_empty() {
        head.location.clone_from(&config.location);
    }
    head.sku.get_or_insert_with(|| Sku::named(config.sku()));
    let id = head.id.clone();
    let mut properties = std::mem::take(&mut head.properties);
    head.properties.extra = std::mem::take(&mut properties.extra);
    for frontend in &mut properties.frontend_ip_configurations {
        complete_frontend(frontend, &id, config);
    }
    complete_lists(&mut properties, &id, config);
    let mut balancer = Balancer {
        head,
        frontends: properties.frontend_ip_configurations.into_iter().collect(),
        pools: properties.backend_address_pools.into_iter().collect(),
        rules: properties.load_balancing_rules.into_iter().collect(),
        probes: properties.probes.into_iter().collect(),
        outbound_rules: properties.outbound_rules.into_iter().collect(),
        nat_rules: properties.inbound_nat_rules,
        nat_pools: properties.inbound_nat_pools,
    };
    refer_rules(&mut balancer);
    refer_outbound(&mut balancer);
    balancer
}

fn complete_frontend(frontend: &mut FrontendIPConfiguration, id: &str, config: &ProviderConfig) {
    complete(&mut frontend.id, || format!("{id}/frontendIPConfigurations/{}", frontend.name));
    let inner = &mut frontend.properties;
    inner.load_balancing_rules.clear();
    inner.outbound_rules.clear();
    if let Some(ip) = &mut inner.public_ip_address {
        complete_reference(ip, "publicIPAddresses", config);
    }
    if let Some(prefix) = &mut inner.public_ip_prefix {
        complete_reference(prefix, "publicIPPrefixes", config);
    }
    if let Some(subnet) = &mut inner.subnet {
        if subnet.name.is_empty() {
            last_segment(&subnet.id).clone_into(&mut subnet.name);
        }
        complete(&mut subnet.id, || subnet_id(config, &subnet.name));
    }
}

/// Completes pools, rules and probes.
fn complete_lists(properties: &mut LoadBalancerProperties, id: &str, config: &ProviderConfig) {
    let own = |list: &str, reference: &mut SubResource| {
        if !reference.id.starts_with('/') {
            reference.id = format!("{id}/{list}/{}", last_segment(&reference.id));
        }
    };
    for pool in &mut properties.backend_address_pools {
        complete(&mut pool.id, || format!("{id}/backendAddressPools/{}", pool.name));
        if let Some(network) = &mut pool.properties.virtual_network {
            let place = config.place_in(&config.vnet_resource_group);
            complete(&mut network.id, || place.id("virtualNetworks", &config.vnet));
        }
    }
    for rule in &mut properties.load_balancing_rules {
        complete(&mut rule.id, || format!("{id}/loadBalancingRules/{}", rule.name));
        let inner = &mut rule.properties;
        for (list, reference) in [
            ("frontendIPConfigurations", &mut inner.frontend_ip_configuration),
            ("backendAddressPools", &mut inner.backend_address_pool),
            ("probes", &mut inner.probe),
        ] {
            if let Some(reference) = reference {
                own(list, reference);
            }
        }
    }
    for probe in &mut properties.probes {
        complete(&mut probe.id, || format!("{id}/probes/{}", probe.name));
        probe.properties.load_balancing_rules.clear();
    }
    for rule in &mut properties.outbound_rules {
        complete(&mut rule.id, || format!("{id}/outboundRules/{}", rule.name));
        for frontend in &mut rule.properties.frontend_ip_configurations {
            own("frontendIPConfigurations", frontend);
        }
        if let Some(pool) = &mut rule.properties.backend_address_pool {
            own("backendAddressPools", pool);
        }
    }
}

/// Writes into frontends and probes which rules use them.
fn refer_rules(balancer: &mut Balancer) {
    for rule in balancer.rules.iter() {
        let reference = SubResource::new(rule.id.clone());
        if let Some(user) = &rule.properties.frontend_ip_configuration
            && let Some(frontend) = balancer.frontends.get_mut(user.name())
        {
            frontend.properties.load_balancing_rules.push(reference.clone());
        }
        if let Some(user) = &rule.properties.probe
            && let Some(probe) = balancer.probes.get_mut(user.name())
        {
            probe.properties.load_balancing_rules.push(reference);
        }
    }
}

/// Writes into the frontends which outbound rules use them.
pub fn refer_outbound(balancer: &mut Balancer) {
    let mut users: BTreeMap<String, Vec<SubResource>> = BTreeMap::new();
    for rule in balancer.outbound_rules.iter() {
        for frontend in &rule.properties.frontend_ip_configurations {
            let list = users.entry(frontend.name().to_lowercase()).or_default();
            list.push(SubResource::new(rule.id.clone()));
        }
    }
    let names: Vec<String> = balancer
        .frontends
        .iter()
        .filter(|frontend| {
            !frontend.properties.outbound_rules.is_empty()
                || users.contains_key(&frontend.name.to_lowercase())
        })
        .map(|frontend| frontend.name.clone())
        .collect();
    for name in names {
        if let Some(frontend) = balancer.frontends.get_mut(&name) {
            frontend.properties.outbound_rules =
                users.remove(&name.to_lowercase()).unwrap_or_default();
        }
    }
}
