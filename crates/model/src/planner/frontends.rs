//! Where a Service's frontends are: which public IP or private address, on a frontend of its own
//! or on one that it shares. Decides and refuses; [`super::service`] carries it out.

use std::net::IpAddr;

use super::annotations::{PREFIX, Refusal};
use super::config::ProviderConfig;
use super::intent::{Intent, PublicSource};
use super::names::{self, Family};
use super::public_ips;
use super::state::{Balancer, State, private_address, subnet_id};
use crate::resources::{
    FrontendIPConfiguration, FrontendIPConfigurationProperties, LoadBalancingRule, PublicIPAddress,
    SubResource, SubnetReference,
};

/// Where the frontend of one family is.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Family.
    pub family: Family,
    /// Frontend.
    pub frontend: String,
    /// The frontend to put there; none if it is there already.
    pub new_frontend: Option<FrontendIPConfiguration>,
    /// Whether a private address is to be drawn for it.
    pub draws_address: bool,
    /// The public IP, on the public load balancer.
    pub public_ip: Option<PublicPlacement>,
    /// What is ignored, if anything is.
    pub warning: Option<String>,
}

/// Which public IP a frontend has.
#[derive(Debug, Clone)]
pub struct PublicPlacement {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Whether it is made new: there is none, or the one that is there cannot be kept.
    pub is_new: bool,
}

/// Decides where the frontend of the `index`th family of `intent` is.
pub fn place(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    index: usize,
) -> Result<Placement, Refusal> {
    let name = config.load_balancer(intent.internal);
    let placement = if intent.internal {
        place_internal(state, config, intent, index)?
    } else {
        place_public(state, config, intent, index)?
    };
    if let Some(balancer) = state.balancer(&name) {
        check_own_frontends(balancer, intent, &placement)?;
    }
    Ok(placement)
}

fn place_public(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    index: usize,
) -> Result<Placement, Refusal> {
    let family = intent.families[index];
    let twin = intent.is_dual() && family == Family::V6;
    let Name { name, is_pinned, warning } = public_ip_name(state, config, intent, index, twin)?;
    let group = intent.public_ip_group.as_deref().unwrap_or(&config.resource_group);
    let balancer_name = config.load_balancer(false);
    let balancer = state.balancer(&balancer_name);
    let known = state.public_ip(&name);
    let mut is_new = true;
    let mut frontend = names::frontend(&intent.prefix, None, twin);
    if let Some(ip) = known {
        is_new = is_replaced(config, intent, ip, family, is_pinned)?;
        check_user(ip, balancer, intent)?;
        let user = user_frontend(ip, balancer);
        if let Some(user) = user.filter(|user| !names::is_owned(&user.name, &intent.prefix))
            && is_pinned
        {
            check_shared(config, user, &name)?;
            frontend.clone_from(&user.name);
        }
        check_label(state, ip, user, intent)?;
    } else if let Some(label) = intent.dns_label.as_deref().filter(|label| !label.is_empty()) {
        check_label_is_free(state, label, &name, family)?;
    }
    let id = match known.filter(|_| !is_new) {
        Some(ip) => ip.id.clone(),
        None => config.place_in(group).id("publicIPAddresses", &name),
    };
    let present = balancer.and_then(|balancer| balancer.frontends.get(&frontend));
    let has_ip = present.is_some_and(|present| {
        let ip = present.properties.public_ip_address.as_ref();
        ip.is_some_and(|ip| {
            ip.id.eq_ignore_ascii_case(&id) || ip.name().eq_ignore_ascii_case(&name)
        })
    });
    let balancer_id = balancer_id(config, &balancer_name, balancer);
    let new_frontend = (!has_ip).then(|| FrontendIPConfiguration {
        id: format!("{balancer_id}/frontendIPConfigurations/{frontend}"),
        name: frontend.clone(),
        properties: FrontendIPConfigurationProperties {
            public_ip_address: Some(SubResource::new(id.clone())),
            ..FrontendIPConfigurationProperties::default()
        },
        ..FrontendIPConfiguration::default()
    });
    let public_ip = Some(PublicPlacement { name, id, is_new });
    Ok(Placement { family, frontend, new_frontend, draws_address: false, public_ip, warning })
}

/// Whether a public IP that is there is replaced by a new one, since it cannot become what the
/// Service wants.
fn is_replaced(
    config: &ProviderConfig,
    intent: &Intent,
    ip: &PublicIPAddress,
    family: Family,
    is_pinned: bool,
) -> Result<bool, Refusal> {
    let mine = public_ips::services(ip);
    let is_mine_alone = matches!(mine.as_slice(), [only] if only.eq_ignore_ascii_case(&intent.key));
    let is_other_family = public_ips::family(ip) != family;
    if is_other_family && (is_pinned || !is_mine_alone) {
        return Err(Refusal(format!(
            "public IP {:?} is {}, and the Service needs {}: name another one",
            ip.name,
            public_ips::family(ip).as_str(),
            family.as_str()
        )));
    }
    let has_other_tags = intent.ip_tags.as_ref().filter(|_| is_mine_alone).is_some_and(|tags| {
        let mut current = ip.properties.ip_tags.clone();
        current.sort();
        // Azure cannot change the IP tags of a public IP, so a new one takes its place.
        current != *tags && !config.mutate_ip_tags
    });
    Ok(is_other_family || has_other_tags)
}

/// Somebody else's frontend can be shared unless egress leaves by it in a way that rules would
/// change.
fn check_shared(
    config: &ProviderConfig,
    user: &FrontendIPConfiguration,
    name: &str,
) -> Result<(), Refusal> {
    if user.properties.outbound_rules.is_empty() || config.disable_outbound_snat {
        return Ok(());
    }
    Err(Refusal(format!(
        "LoadBalancingRuleMustDisableSNATSinceSameFrontendIPConfigurationIsReferencedBy\
         OutboundRule: public IP {name:?} serves an outbound rule: set disableOutboundSNAT, or \
         use another public IP"
    )))
}

/// Id of a load balancer, whether it is there or not.
pub fn balancer_id(config: &ProviderConfig, name: &str, balancer: Option<&Balancer>) -> String {
    match balancer {
        Some(balancer) => balancer.head.id.clone(),
        None => config.place_in(&config.load_balancer_resource_group).id("loadBalancers", name),
    }
}

/// The public IP that a Service wants.
struct Name {
    name: String,
    /// Whether the Service pins it to one that must exist.
    is_pinned: bool,
    /// What is ignored, if anything is.
    warning: Option<String>,
}

fn public_ip_name(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    index: usize,
    twin: bool,
) -> Result<Name, Refusal> {
    let group = intent.public_ip_group.as_deref().unwrap_or(&config.resource_group);
    let key = &intent.key;
    let own = |id| Name {
        name: names::public_ip(&config.cluster, &intent.prefix, id, twin),
        is_pinned: false,
        warning: None,
    };
    match &intent.public[index] {
        PublicSource::Own => Ok(own(None)),
        PublicSource::Prefix(id) => {
            check_prefix(state, config, intent, id, intent.families[index], twin)?;
            Ok(own(Some(id)))
        }
        PublicSource::Named(name) => match pinned(config, intent, state.public_ip(name)) {
            Some(pinned) => Ok(pinned),
            None => Err(Refusal(format!(
                "PublicIP from annotation azure-pip-name(-IPv6)={name} for service {key} doesn't \
                 exist: create it in resource group {group}, or remove annotation {PREFIX}\
                 azure-pip-name"
            ))),
        },
        PublicSource::Address(address) => {
            match pinned(config, intent, state.public_ip_at(*address)) {
                Some(pinned) => Ok(pinned),
                None => Err(Refusal(format!(
                    "findMatchedPIPByLoadBalancerIP: cannot find public IP with IP address \
                     {address} in resource group {group}: create a public IP with that address, \
                     or ask for none with annotation {PREFIX}azure-load-balancer-ipv4 or \
                     spec.loadBalancerIP"
                ))),
            }
        }
    }
}

/// A public IP that is there, if the group that the Service names lets it be the one. One of the
/// cluster's own group is there for who has never said in which group it is.
fn pinned(config: &ProviderConfig, intent: &Intent, ip: Option<&PublicIPAddress>) -> Option<Name> {
    let ip = ip?;
    let group = resource_group(&ip.id).unwrap_or(&config.resource_group);
    let asked = intent.public_ip_group.as_deref();
    let other = asked.filter(|asked| !asked.eq_ignore_ascii_case(group));
    if other.is_some() && !group.eq_ignore_ascii_case(&config.resource_group) {
        return None;
    }
    let name = ip.name.clone();
    let warning = other.map(|asked| {
        format!(
            "annotation {PREFIX}azure-load-balancer-resource-group: {asked:?} is ignored: \
             PublicIPAddress {name} does not say in which group it is: write spec.resourceGroup"
        )
    });
    Some(Name { name, is_pinned: true, warning })
}

fn resource_group(id: &str) -> Option<&str> {
    let mut segments = id.split('/');
    segments.by_ref().find(|segment| segment.eq_ignore_ascii_case("resourceGroups"))?;
    segments.next()
}

/// A prefix that is known must have the right family and a free address.
fn check_prefix(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    id: &str,
    family: Family,
    twin: bool,
) -> Result<(), Refusal> {
    let name = crate::resources::last_segment(id);
    let bad = |why: &str| Refusal(format!("annotation {PREFIX}azure-pip-prefix-id: {id:?}: {why}"));
    if name.is_empty() || !id.to_lowercase().contains("publicipprefixes/") {
        return Err(bad("must be the id of a public IP prefix"));
    }
    let Some(prefix) = state.prefixes.get(&name.to_lowercase()) else { return Ok(()) };
    let net = prefix.properties.ip_prefix.as_ref().and_then(|net| net.parse().ok());
    let Some(net): Option<ipnet::IpNet> = net else { return Ok(()) };
    if Family::of(net.network()) != family {
        return Err(bad(&format!("is not {}", family.as_str())));
    }
    let own = names::public_ip(&config.cluster, &intent.prefix, Some(id), twin);
    if state.public_ip(&own).is_none() && state.pool.free_in(net).is_none() {
        return Err(bad(&format!("has no free address in {net}")));
    }
    Ok(())
}

/// The frontend of `balancer` that has the public IP.
fn user_frontend<'a>(
    ip: &PublicIPAddress,
    balancer: Option<&'a Balancer>,
) -> Option<&'a FrontendIPConfiguration> {
    let user = ip.properties.ip_configuration.as_ref()?;
    balancer?.frontends.get(user.name()).filter(|found| found.id.eq_ignore_ascii_case(&user.id))
}

/// A public IP that something else than the load balancer uses cannot be a frontend.
fn check_user(
    ip: &PublicIPAddress,
    balancer: Option<&Balancer>,
    intent: &Intent,
) -> Result<(), Refusal> {
    let gateway = ip.properties.nat_gateway.as_ref();
    let other = ip.properties.ip_configuration.as_ref();
    let other = other.filter(|_| user_frontend(ip, balancer).is_none());
    match gateway.or(other) {
        Some(user) => Err(Refusal(format!(
            "public IP {:?} is in use by {}: free it, or name another one for {}",
            ip.name, user.id, intent.key
        ))),
        None => Ok(()),
    }
}

/// Two Services on one public IP cannot both put a DNS label there.
fn check_label(
    state: &State,
    ip: &PublicIPAddress,
    user: Option<&FrontendIPConfiguration>,
    intent: &Intent,
) -> Result<(), Refusal> {
    let Some(label) = intent.dns_label.as_deref() else { return Ok(()) };
    let owner = public_ips::dns_owner(ip);
    if let Some(owner) = owner.filter(|owner| !owner.eq_ignore_ascii_case(&intent.key)) {
        return Err(Refusal(format!(
            "there is an existing service {owner} consuming the DNS label on the public IP {:?}, \
             so the service cannot set the DNS label annotation with this value {label:?}: remove \
             annotation {PREFIX}azure-dns-label-name from one of them",
            ip.name
        )));
    }
    let current = ip.properties.dns_settings.as_ref();
    let current = current.and_then(|dns| dns.domain_name_label.as_deref()).unwrap_or_default();
    let is_shared = user.is_some_and(|user| {
        let mut rules = user.properties.load_balancing_rules.iter();
        rules.any(|rule| !names::is_owned(rule.name(), &intent.prefix))
    });
    if owner.is_none() && is_shared && !current.is_empty() && !current.eq_ignore_ascii_case(label) {
        return Err(Refusal(format!(
            "public IP {:?} already has the DNS label {current:?} and is shared, so the service \
             cannot set {label:?}: remove annotation {PREFIX}azure-dns-label-name",
            ip.name
        )));
    }
    if label.is_empty() {
        return Ok(());
    }
    check_label_is_free(state, label, &ip.name, public_ips::family(ip))
}

fn check_label_is_free(
    state: &State,
    label: &str,
    name: &str,
    family: Family,
) -> Result<(), Refusal> {
    match state.public_ip_labelled(label, family).filter(|ip| !ip.name.eq_ignore_ascii_case(name)) {
        Some(ip) => Err(Refusal(format!(
            "annotation {PREFIX}azure-dns-label-name: {label:?}: public IP {:?} has that label: \
             choose another",
            ip.name
        ))),
        None => Ok(()),
    }
}

fn place_internal(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    index: usize,
) -> Result<Placement, Refusal> {
    let family = intent.families[index];
    let twin = intent.is_dual() && family == Family::V6;
    let balancer_name = config.load_balancer(true);
    let balancer = state.balancer(&balancer_name);
    let own = names::frontend(&intent.prefix, intent.subnet.as_deref(), twin);
    let subnet = intent.subnet.as_deref().unwrap_or(&config.subnet);
    let Some(known_subnet) = state.subnets.get(subnet) else {
        return Err(Refusal(format!(
            "ensure({}): lb({balancer_name}) - failed to get subnet: {}/{subnet}: annotation \
             {PREFIX}azure-load-balancer-internal-subnet must name a subnet of that network",
            intent.key, config.vnet
        )));
    };
    let subnet_name = known_subnet.name.clone();
    let wanted = intent.private_addresses[index];
    let mut placement = Placement {
        family,
        frontend: own.clone(),
        new_frontend: None,
        draws_address: false,
        public_ip: None,
        warning: None,
    };
    let mine = |frontend: &&FrontendIPConfiguration| {
        names::is_owned(&frontend.name, &intent.prefix) && frontend_family(frontend) == family
    };
    let previous = balancer.and_then(|balancer| {
        let names = balancer.frontends.starting_with(&intent.prefix);
        let mut frontends = names.iter().filter_map(|name| balancer.frontends.get(name));
        frontends.find(mine)
    });
    if let Some(address) = wanted {
        let holder = balancer.and_then(|balancer| holder(state, balancer, address));
        if let Some(holder) = holder.filter(|holder| !mine(holder)) {
            placement.frontend.clone_from(&holder.name);
            return Ok(placement);
        }
        if holder.is_none() {
            check_wanted(state, intent, subnet, address)?;
        }
    }
    if previous.is_some_and(|present| is_as_wanted(present, intent, &own, subnet, wanted)) {
        return Ok(placement);
    }
    let address = match wanted {
        Some(address) => Some(address),
        None => kept_address(state, intent, subnet, family, previous)?,
    };
    let zones = match previous {
        Some(previous) => previous.zones.clone(),
        None if config.standard => config.zones.clone(),
        None => Vec::new(),
    };
    let id = balancer_id(config, &balancer_name, balancer);
    placement.draws_address = address.is_none();
    placement.new_frontend = Some(FrontendIPConfiguration {
        id: format!("{id}/frontendIPConfigurations/{own}"),
        name: own,
        zones,
        properties: private(config, subnet_name, family, address),
    });
    Ok(placement)
}

/// Whether a frontend that is there can stay as it is.
fn is_as_wanted(
    present: &FrontendIPConfiguration,
    intent: &Intent,
    name: &str,
    subnet: &str,
    address: Option<IpAddr>,
) -> bool {
    let of_subnet = present.properties.subnet.as_ref();
    let has_subnet = intent.subnet.is_none()
        || of_subnet.is_some_and(|found| found.name.eq_ignore_ascii_case(subnet));
    let has_address = address.is_none_or(|wanted| private_address(present) == Some(wanted));
    present.name.eq_ignore_ascii_case(name) && has_subnet && has_address
}

/// A private frontend; without an address one is drawn.
fn private(
    config: &ProviderConfig,
    subnet: String,
    family: Family,
    address: Option<IpAddr>,
) -> FrontendIPConfigurationProperties {
    let method = if address.is_some() { "Static" } else { "Dynamic" };
    FrontendIPConfigurationProperties {
        private_ip_address: address.map(|address| address.to_string()),
        private_ip_allocation_method: Some(method.to_owned()),
        private_ip_address_version: (family == Family::V6).then(|| "IPv6".to_owned()),
        subnet: Some(SubnetReference { id: subnet_id(config, &subnet), name: subnet }),
        ..FrontendIPConfigurationProperties::default()
    }
}

/// The frontend that has a private address.
fn holder<'a>(
    state: &State,
    balancer: &'a Balancer,
    address: IpAddr,
) -> Option<&'a FrontendIPConfiguration> {
    let mut frontends = balancer.frontends.iter().filter(|_| state.subnets.is_used(address));
    frontends.find(|found| private_address(found) == Some(address))
}

/// A private address that no frontend has must be of the subnet, and no node's.
fn check_wanted(
    state: &State,
    intent: &Intent,
    subnet: &str,
    address: IpAddr,
) -> Result<(), Refusal> {
    let why = if !state.subnets.contains(subnet, address) {
        format!("is not in subnet {subnet}: ask for an address of that subnet")
    } else if state.subnets.is_used(address) {
        "is the address of a node: ask for another".to_owned()
    } else {
        return Ok(());
    };
    let key = &intent.key;
    Err(Refusal(format!("internal Service {key}: LoadBalancer IP {address} {why}")))
}

/// The private address that a Service has had; none if one is to be drawn.
fn kept_address(
    state: &State,
    intent: &Intent,
    subnet: &str,
    family: Family,
    previous: Option<&FrontendIPConfiguration>,
) -> Result<Option<IpAddr>, Refusal> {
    let fits = |address: &IpAddr| {
        Family::of(*address) == family && state.subnets.contains(subnet, *address)
    };
    let kept = previous.and_then(private_address).filter(fits);
    let mut told = intent.status.iter().copied();
    let told = told.find(|address| fits(address) && !state.subnets.is_used(*address));
    let address = kept.or(told);
    if address.is_none() && state.subnets.free(subnet, family).is_none() {
        return Err(Refusal(format!(
            "internal Service {}: subnet {subnet} has no free {} address: choose another with \
             annotation {PREFIX}azure-load-balancer-internal-subnet",
            intent.key,
            family.as_str()
        )));
    }
    Ok(address)
}

/// The family of a private frontend.
fn frontend_family(frontend: &FrontendIPConfiguration) -> Family {
    match frontend.properties.private_ip_address_version.as_deref() {
        Some(version) if version.eq_ignore_ascii_case("IPv6") => Family::V6,
        _ => private_address(frontend).map_or(Family::V4, Family::of),
    }
}

/// A frontend that others use cannot get another address under them.
fn check_own_frontends(
    balancer: &Balancer,
    intent: &Intent,
    placement: &Placement,
) -> Result<(), Refusal> {
    let Some(new) = &placement.new_frontend else { return Ok(()) };
    let Some(present) = balancer.frontends.get(&new.name) else { return Ok(()) };
    let mut rules = present.properties.load_balancing_rules.iter();
    let other = rules.find(|rule| !names::is_owned(rule.name(), &intent.prefix));
    let nat = balancer.nat_users(&present.name).next().map(|rule| rule.name.as_str());
    let outbound = present.properties.outbound_rules.first().map(SubResource::name);
    match other.map(SubResource::name).or(outbound).or(nat) {
        Some(user) => Err(Refusal(format!(
            "frontend {} cannot get another address: rule {user} of somebody else uses it: move \
             that one first",
            present.name
        ))),
        None => Ok(()),
    }
}

/// Refuses rules whose port on the frontend is already another's.
pub fn check_conflicts(
    balancer: &Balancer,
    intent: &Intent,
    rules: &[LoadBalancingRule],
    frontend: &str,
) -> Result<(), Refusal> {
    let Some(present) = balancer.frontends.get(frontend) else { return Ok(()) };
    let overlaps = |a: &str, b: &str| {
        a.eq_ignore_ascii_case(b) || a.eq_ignore_ascii_case("All") || b.eq_ignore_ascii_case("All")
    };
    let others: Vec<&LoadBalancingRule> = present
        .properties
        .load_balancing_rules
        .iter()
        .filter(|rule| !names::is_owned(rule.name(), &intent.prefix))
        .filter_map(|rule| balancer.rules.get(rule.name()))
        .collect();
    for rule in rules {
        let (protocol, port) = (&rule.properties.protocol, rule.properties.frontend_port);
        let what = intent.ports.iter().find(|known| known.port == port);
        let what = what.map_or("", |port| port.name.as_str());
        let other = others.iter().find(|other| {
            let theirs = other.properties.frontend_port;
            overlaps(protocol, &other.properties.protocol)
                && (port == theirs || port == 0 || theirs == 0)
        });
        if let Some(other) = other {
            return Err(Refusal(format!(
                "checkLoadBalancerResourcesConflicts: service port {what} is trying to consume \
                 the port {port} which is being referenced by an existing loadBalancing rule {} \
                 with the same protocol {} and frontend IP config with ID {}: choose another port \
                 or another address",
                other.name, other.properties.protocol, present.id
            )));
        }
        let nat = balancer.nat_users(frontend).find(|nat| {
            let range = match nat.properties.frontend_port {
                Some(port) => port..=port,
                None => {
                    nat.properties.frontend_port_range_start.unwrap_or(1)
                        ..=nat.properties.frontend_port_range_end.unwrap_or(0)
                }
            };
            overlaps(protocol, &nat.properties.protocol) && (port == 0 || range.contains(&port))
        });
        if let Some(nat) = nat {
            return Err(Refusal(format!(
                "checkLoadBalancerResourcesConflicts: service port {what} is trying to consume \
                 the port {port} which is being referenced by an existing inbound NAT rule {} \
                 with the same protocol {} and frontend IP config with ID {}: choose another port \
                 or another address",
                nat.name, nat.properties.protocol, present.id
            )));
        }
    }
    Ok(())
}
