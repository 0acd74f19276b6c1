//! The resources while they are planned: every edit goes through here, so that it is noted for the
//! list of changes, indexes stay right, and references back (a frontend's rules, a public IP's
//! user) follow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::addresses::{Pool, Subnets};
use super::changes::{Change, Journal, Part};
use super::config::ProviderConfig;
use super::names::{self, Family};
use super::ordered::Ordered;
use super::public_ips;
use super::security_group::SecurityGroup;
use super::takeover::{complete, complete_reference, read_balancer, refer_outbound};
use crate::resources::{
    BackendAddressPool, FrontendIPConfiguration, InboundNatRule, LoadBalancer,
    LoadBalancerProperties, LoadBalancingRule, NatGateway, OutboundRule, Probe, PublicIPAddress,
    PublicIPPrefix, Resources, RouteTable, Sku, SubResource,
};

/// A load balancer with its lists indexed by name.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    /// The resource without its lists.
    pub head: LoadBalancer,
    /// Frontends.
    pub frontends: Ordered<FrontendIPConfiguration>,
    /// Pools.
    pub pools: Ordered<BackendAddressPool>,
    /// Load-balancing rules.
    pub rules: Ordered<LoadBalancingRule>,
    /// Probes.
    pub probes: Ordered<Probe>,
    /// Outbound rules.
    pub outbound_rules: Ordered<OutboundRule>,
    /// Inbound NAT rules of others.
    pub nat_rules: Vec<InboundNatRule>,
    /// Inbound NAT pools of others.
    pub nat_pools: Vec<InboundNatRule>,
}

impl Balancer {
    fn into_resource(self) -> LoadBalancer {
        let mut head = self.head;
        head.properties = LoadBalancerProperties {
            frontend_ip_configurations: self.frontends.into_vec(),
            backend_address_pools: self.pools.into_vec(),
            load_balancing_rules: self.rules.into_vec(),
            probes: self.probes.into_vec(),
            outbound_rules: self.outbound_rules.into_vec(),
            inbound_nat_rules: self.nat_rules,
            inbound_nat_pools: self.nat_pools,
            extra: head.properties.extra,
        };
        head
    }

    fn resource(&self) -> LoadBalancer {
        LoadBalancer {
            properties: LoadBalancerProperties {
                frontend_ip_configurations: self.frontends.to_vec(),
                backend_address_pools: self.pools.to_vec(),
                load_balancing_rules: self.rules.to_vec(),
                probes: self.probes.to_vec(),
                outbound_rules: self.outbound_rules.to_vec(),
                inbound_nat_rules: self.nat_rules.clone(),
                inbound_nat_pools: self.nat_pools.clone(),
                extra: self.head.properties.extra.clone(),
            },
            ..self.head.clone()
        }
    }

    /// NAT rules and pools that use the frontend.
    pub fn nat_users<'a>(&'a self, frontend: &'a str) -> impl Iterator<Item = &'a InboundNatRule> {
        self.nat_rules.iter().chain(&self.nat_pools).filter(move |rule| {
            let user = rule.properties.frontend_ip_configuration.as_ref();
            user.is_some_and(|user| user.name().eq_ignore_ascii_case(frontend))
        })
    }

    /// Whether anything uses the frontend.
    pub fn is_used(&self, frontend: &FrontendIPConfiguration) -> bool {
        !frontend.properties.load_balancing_rules.is_empty()
            || !frontend.properties.outbound_rules.is_empty()
            || self.nat_users(&frontend.name).next().is_some()
    }
}

/// All resources.
#[derive(Debug, Clone)]
pub struct State {
    /// Load balancers by name in lower case.
    pub balancers: BTreeMap<String, Balancer>,
    /// Public IPs by name in lower case.
    pub public_ips: BTreeMap<String, PublicIPAddress>,
    /// Public IPs of each Service (key in lower case).
    by_service: BTreeMap<String, BTreeSet<String>>,
    /// Public IP of each address.
    by_address: BTreeMap<IpAddr, String>,
    /// Public IP of each DNS label and family.
    by_label: BTreeMap<String, String>,
    /// The security group.
    pub security_group: SecurityGroup,
    /// Security groups that are not the cluster's.
    other_groups: BTreeMap<String, crate::resources::NetworkSecurityGroup>,
    /// Public IP prefixes.
    pub prefixes: BTreeMap<String, PublicIPPrefix>,
    /// NAT gateways.
    pub nat_gateways: BTreeMap<String, NatGateway>,
    /// Route tables.
    pub route_tables: BTreeMap<String, RouteTable>,
    /// Everything else, untouched.
    others: BTreeMap<String, Value>,
    /// Free public addresses.
    pub pool: Pool,
    /// Subnets and free private addresses.
    pub subnets: Subnets,
    /// Public addresses with flows that may go on.
    pub kept: BTreeSet<IpAddr>,
    /// What the current step touched.
    pub journal: Journal,
    /// Whether anything was edited since this was last reset.
    pub is_touched: bool,
}

impl State {
    /// Takes over what exists: ids are made full, names and back references filled in.
    pub fn read(resources: Resources, config: &ProviderConfig, pool: Pool) -> Self {
        let mut groups = resources.network_security_groups;
        let group = groups.remove(&config.security_group.to_lowercase());
        let mut state = State {
            balancers: BTreeMap::new(),
            public_ips: BTreeMap::new(),
            by_service: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_label: BTreeMap::new(),
            security_group: SecurityGroup::read(group, config),
            other_groups: groups,
            prefixes: resources.public_ip_prefixes,
            nat_gateways: resources.nat_gateways,
            route_tables: resources.route_tables,
            others: resources.others,
            pool,
            subnets: Subnets::new(&config.subnet),
            kept: BTreeSet::new(),
            journal: Journal::default(),
            is_touched: false,
        };
        state.read_subnets(config);
        let place = config.place();
        for (key, prefix) in &mut state.prefixes {
            complete(&mut prefix.id, || place.id("publicIPPrefixes", key));
        }
        for (key, gateway) in &mut state.nat_gateways {
            complete(&mut gateway.id, || place.id("natGateways", key));
            for ip in &mut gateway.properties.public_ip_addresses {
                complete_reference(ip, "publicIPAddresses", config);
            }
            for prefix in &mut gateway.properties.public_ip_prefixes {
                complete_reference(prefix, "publicIPPrefixes", config);
            }
        }
        for (key, mut ip) in resources.public_ip_addresses {
            if ip.name.is_empty() {
                ip.name.clone_from(&key);
            }
            complete(&mut ip.id, || place.id("publicIPAddresses", &ip.name));
            if ip.location.is_empty() {
                ip.location.clone_from(&config.location);
            }
            if let Some(user) = &ip.properties.ip_configuration {
                // A frontend's claim is read from the frontend; others' claims are kept.
                let is_frontend = user.id.to_lowercase().contains("frontendipconfigurations/");
                if is_frontend {
                    ip.properties.ip_configuration = None;
                }
            }
            if let Some(prefix) = &mut ip.properties.public_ip_prefix {
                complete_reference(prefix, "publicIPPrefixes", config);
            }
            state.index(&key, &ip);
            state.public_ips.insert(key, ip);
        }
        for (key, balancer) in resources.load_balancers {
            let balancer = read_balancer(&key, balancer, config);
            for frontend in balancer.frontends.iter() {
                state.connect(frontend, &balancer.head.id);
            }
            state.balancers.insert(key, balancer);
        }
        state
    }

    /// Gives addresses to what has none: public IPs by name, then internal frontends.
    pub fn fill_addresses(&mut self) {
        let without: Vec<String> = self
            .public_ips
            .iter()
            .filter(|(_, ip)| ip.properties.ip_address.as_deref().unwrap_or("").is_empty())
            .map(|(key, _)| key.clone())
            .collect();
        for key in without {
            let Some(ip) = self.public_ips.get(&key).cloned() else { continue };
            let address = self.draw(public_ips::family(&ip), &ip);
            self.edit_public_ip(&key, |ip| {
                ip.properties.ip_address = address.map(|address| address.to_string());
            });
        }
        let frontends: Vec<(String, String)> = self
            .balancers
            .iter()
            .flat_map(|(key, balancer)| {
                let frontends = balancer.frontends.iter().filter(|frontend| {
                    frontend.properties.subnet.is_some()
                        && frontend.properties.private_ip_address.is_none()
                });
                frontends.map(|frontend| (key.clone(), frontend.name.clone()))
            })
            .collect();
        for (key, name) in frontends {
            let Some(balancer) = self.balancers.get_mut(&key) else { continue };
            let Some(frontend) = balancer.frontends.get_mut(&name) else { continue };
            let properties = &mut frontend.properties;
            let subnet = properties.subnet.as_ref().map_or("", |subnet| subnet.name.as_str());
            let family = match properties.private_ip_address_version.as_deref() {
                Some("IPv6") => Family::V6,
                _ => Family::V4,
            };
            let address = self.subnets.next(subnet, family);
            self.journal
                .note(part(&key, "properties.frontendIPConfigurations", &name), Some(&*frontend));
            frontend.properties.private_ip_address = address.map(|address| address.to_string());
        }
    }

    /// Subnets come as `virtualnetworks/<vnet>/subnets/<name>`.
    fn read_subnets(&mut self, config: &ProviderConfig) {
        let vnet = config.vnet.to_lowercase();
        for (key, value) in &self.others {
            let lower = key.to_lowercase();
            let mut segments = lower.split('/');
            let is_ours = segments.next() == Some("virtualnetworks")
                && segments.next() == Some(vnet.as_str())
                && segments.next() == Some("subnets");
            let (Some(name), None) = (key.split('/').nth(3), key.split('/').nth(4)) else {
                continue;
            };
            if !is_ours || name.is_empty() {
                continue;
            }
            let name = value["name"].as_str().unwrap_or(name);
            let properties = &value["properties"];
            let one = properties["addressPrefix"].as_str();
            let several = properties["addressPrefixes"].as_array().into_iter().flatten();
            let texts = one.into_iter().chain(several.filter_map(Value::as_str));
            self.subnets.add(name, texts.filter_map(|text| text.parse().ok()).collect());
        }
    }

    fn index(&mut self, key: &str, ip: &PublicIPAddress) {
        for service in public_ips::services(ip) {
            self.by_service.entry(service.to_lowercase()).or_default().insert(key.to_owned());
        }
        if let Some(address) = ip.properties.ip_address.as_deref().and_then(|ip| ip.parse().ok()) {
            self.pool.take(address);
            self.by_address.insert(address, key.to_owned());
        }
        if let Some(label) = label(ip) {
            self.by_label.insert(label, key.to_owned());
        }
    }

    fn unindex(&mut self, key: &str, ip: &PublicIPAddress) {
        for service in public_ips::services(ip) {
            let service = service.to_lowercase();
            if let Some(keys) = self.by_service.get_mut(&service) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_service.remove(&service);
                }
            }
        }
        if let Some(address) = ip.properties.ip_address.as_deref().and_then(|ip| ip.parse().ok()) {
            self.by_address.remove(&address);
        }
        if let Some(label) = label(ip) {
            self.by_label.remove(&label);
        }
    }

    /// Notes who uses the address of `frontend`.
    fn connect(&mut self, frontend: &FrontendIPConfiguration, _balancer: &str) {
        if let Some(ip) = &frontend.properties.public_ip_address
            && let Some(ip) = self.public_ips.get_mut(&ip.name().to_lowercase())
        {
            ip.properties.ip_configuration = Some(SubResource::new(frontend.id.clone()));
        }
        if let Some(address) = private_address(frontend) {
            self.subnets.take(address);
        }
    }

    fn disconnect(&mut self, frontend: &FrontendIPConfiguration) {
        if let Some(ip) = &frontend.properties.public_ip_address
            && let Some(ip) = self.public_ips.get_mut(&ip.name().to_lowercase())
        {
            let user = ip.properties.ip_configuration.as_ref();
            if user.is_some_and(|user| user.id.eq_ignore_ascii_case(&frontend.id)) {
                ip.properties.ip_configuration = None;
            }
        }
        if let Some(address) = private_address(frontend) {
            self.subnets.release(address);
        }
    }

    /// The public IP called `name`.
    pub fn public_ip(&self, name: &str) -> Option<&PublicIPAddress> {
        self.public_ips.get(&name.to_lowercase())
    }

    /// The public IP that has `address`.
    pub fn public_ip_at(&self, address: IpAddr) -> Option<&PublicIPAddress> {
        self.public_ips.get(self.by_address.get(&address)?)
    }

    /// The public IP that has the DNS label.
    pub fn public_ip_labelled(&self, label: &str, family: Family) -> Option<&PublicIPAddress> {
        self.public_ips.get(self.by_label.get(&label_key(label, family))?)
    }

    /// Keys of the public IPs whose tag names the Service.
    pub fn public_ips_of(&self, service: &str) -> Vec<String> {
        let keys = self.by_service.get(&service.to_lowercase());
        keys.into_iter().flatten().cloned().collect()
    }

    /// Every Service that a public IP's tag names.
    pub fn tagged_services(&self) -> BTreeSet<String> {
        self.public_ips.values().flat_map(public_ips::services).collect()
    }

    /// Draws an address for `ip`: out of its prefix, if that is known, else out of the pool.
    fn draw(&mut self, family: Family, ip: &PublicIPAddress) -> Option<IpAddr> {
        let prefix = ip.properties.public_ip_prefix.as_ref().map(SubResource::name);
        let prefix = prefix.and_then(|name| self.prefixes.get(&name.to_lowercase()));
        match prefix.and_then(|prefix| prefix.properties.ip_prefix.as_ref()?.parse().ok()) {
            Some(net) => self.pool.next_in(net),
            None => self.pool.next(family),
        }
    }

    /// Draws an address for a public IP that is to be made.
    pub fn draw_for(&mut self, ip: &PublicIPAddress) -> Option<IpAddr> {
        let ip = ip.clone();
        self.draw(public_ips::family(&ip), &ip)
    }

    /// Adds a public IP.
    pub fn add_public_ip(&mut self, ip: PublicIPAddress) {
        let key = ip.name.to_lowercase();
        self.journal.note(Part::whole(ip_key(&key)), self.public_ips.get(&key));
        self.index(&key, &ip);
        self.public_ips.insert(key, ip);
        self.is_touched = true;
    }

    /// Edits a public IP, if that makes it different.
    pub fn edit_public_ip(&mut self, key: &str, edit: impl FnOnce(&mut PublicIPAddress)) {
        let Some(before) = self.public_ips.get(key).cloned() else { return };
        let mut after = before.clone();
        edit(&mut after);
        if before == after {
            return;
        }
        self.journal.note(Part::whole(ip_key(key)), Some(&before));
        self.unindex(key, &before);
        self.index(key, &after);
        self.public_ips.insert(key.to_owned(), after);
        self.is_touched = true;
    }

    /// Removes a public IP and gives its address back.
    pub fn remove_public_ip(&mut self, key: &str) {
        let Some(ip) = self.public_ips.remove(key) else { return };
        self.journal.note(Part::whole(ip_key(key)), Some(&ip));
        self.unindex(key, &ip);
        if let Some(address) = ip.properties.ip_address.as_deref().and_then(|ip| ip.parse().ok()) {
            self.pool.release(address);
        }
        self.is_touched = true;
    }

    /// The load balancer called `name`.
    pub fn balancer(&self, name: &str) -> Option<&Balancer> {
        self.balancers.get(&name.to_lowercase())
    }

    /// Makes the load balancer called `name` if there is none; brings its tags up to date.
    pub fn ensure_balancer(&mut self, name: &str, config: &ProviderConfig) {
        let key = name.to_lowercase();
        let part = Part::whole(balancer_key(&key));
        if !self.balancers.contains_key(&key) {
            self.journal.note(part.clone(), None::<&LoadBalancer>);
            let place = config.place_in(&config.load_balancer_resource_group);
            let head = LoadBalancer {
                id: place.id("loadBalancers", name),
                name: name.to_owned(),
                location: config.location.clone(),
                sku: Some(Sku::named(config.sku())),
                ..LoadBalancer::default()
            };
            self.balancers.insert(key.clone(), Balancer { head, ..Balancer::default() });
            self.is_touched = true;
        }
        let Some(balancer) = self.balancers.get_mut(&key) else { return };
        let mut tags = balancer.head.tags.clone();
        public_ips::apply_tags(&mut tags, config, &BTreeMap::new());
        if tags != balancer.head.tags {
            self.journal.note(part, Some(&balancer.head));
            balancer.head.tags = tags;
            self.is_touched = true;
        }
    }

    /// Removes the load balancer if it has no frontend left: Azure has none without.
    pub fn remove_balancer_if_bare(&mut self, key: &str) {
        if self.balancers.get(key).is_some_and(|balancer| balancer.frontends.is_empty())
            && let Some(balancer) = self.balancers.remove(key)
        {
            self.journal.note(Part::whole(balancer_key(key)), Some(&balancer.head));
            self.is_touched = true;
        }
    }

    /// Removes a load balancer with all that it has.
    pub fn remove_balancer(&mut self, key: &str) {
        let Some(balancer) = self.balancers.get(key) else { return };
        let frontends = balancer.frontends.to_vec();
        for frontend in &frontends {
            self.disconnect(frontend);
        }
        if let Some(balancer) = self.balancers.remove(key) {
            self.journal.note(Part::whole(balancer_key(key)), Some(&balancer.head));
        }
        self.is_touched = true;
    }

    /// Adds a rule at the end.
    pub fn add_rule(&mut self, key: &str, rule: LoadBalancingRule) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let part = part(key, "properties.loadBalancingRules", &rule.name);
        self.journal.note(part, balancer.rules.get(&rule.name));
        let reference = SubResource::new(rule.id.clone());
        if let Some(frontend) = &rule.properties.frontend_ip_configuration
            && let Some(frontend) = balancer.frontends.get_mut(frontend.name())
        {
            frontend.properties.load_balancing_rules.push(reference.clone());
        }
        if let Some(probe) = &rule.properties.probe
            && let Some(probe) = balancer.probes.get_mut(probe.name())
        {
            probe.properties.load_balancing_rules.push(reference);
        }
        balancer.rules.push(rule);
        self.is_touched = true;
    }

    /// Removes a rule.
    pub fn remove_rule(&mut self, key: &str, name: &str) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let Some(rule) = balancer.rules.remove(name) else { return };
        self.journal.note(part(key, "properties.loadBalancingRules", name), Some(&rule));
        if let Some(frontend) = &rule.properties.frontend_ip_configuration
            && let Some(frontend) = balancer.frontends.get_mut(frontend.name())
        {
            remove_reference(&mut frontend.properties.load_balancing_rules, name);
        }
        if let Some(probe) = &rule.properties.probe
            && let Some(probe) = balancer.probes.get_mut(probe.name())
        {
            remove_reference(&mut probe.properties.load_balancing_rules, name);
        }
        self.is_touched = true;
    }

    /// Adds a probe at the end.
    pub fn add_probe(&mut self, key: &str, mut probe: Probe) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let part = part(key, "properties.probes", &probe.name);
        self.journal.note(part, balancer.probes.get(&probe.name));
        if let Some(known) = balancer.probes.get(&probe.name) {
            probe
                .properties
                .load_balancing_rules
                .clone_from(&known.properties.load_balancing_rules);
        }
        balancer.probes.push(probe);
        self.is_touched = true;
    }

    /// Removes a probe.
    pub fn remove_probe(&mut self, key: &str, name: &str) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let Some(probe) = balancer.probes.remove(name) else { return };
        self.journal.note(part(key, "properties.probes", name), Some(&probe));
        self.is_touched = true;
    }

    /// Adds a frontend at the end, in the place of one of the same name.
    pub fn add_frontend(&mut self, key: &str, mut frontend: FrontendIPConfiguration) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let part = part(key, "properties.frontendIPConfigurations", &frontend.name);
        self.journal.note(part, balancer.frontends.get(&frontend.name));
        let known = balancer.frontends.remove(&frontend.name);
        if let Some(known) = &known {
            let properties = &mut frontend.properties;
            properties.load_balancing_rules.clone_from(&known.properties.load_balancing_rules);
            properties.outbound_rules.clone_from(&known.properties.outbound_rules);
        }
        let id = balancer.head.id.clone();
        balancer.frontends.push(frontend.clone());
        if let Some(known) = known {
            self.disconnect(&known);
        }
        self.connect(&frontend, &id);
        self.is_touched = true;
    }

    /// Removes a frontend.
    pub fn remove_frontend(&mut self, key: &str, name: &str) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let Some(frontend) = balancer.frontends.remove(name) else { return };
        self.journal.note(part(key, "properties.frontendIPConfigurations", name), Some(&frontend));
        self.disconnect(&frontend);
        self.is_touched = true;
    }

    /// Puts a pool in the place of one of the same name; its place in the list is kept.
    pub fn set_pool(&mut self, key: &str, pool: BackendAddressPool) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let part = part(key, "properties.backendAddressPools", &pool.name);
        match balancer.pools.get_mut(&pool.name) {
            Some(known) if *known == pool => return,
            Some(known) => {
                self.journal.note(part, Some(&*known));
                *known = pool;
            }
            None => {
                self.journal.note(part, None::<&BackendAddressPool>);
                balancer.pools.push(pool);
            }
        }
        self.is_touched = true;
    }

    /// Removes a pool.
    pub fn remove_pool(&mut self, key: &str, name: &str) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let Some(pool) = balancer.pools.remove(name) else { return };
        self.journal.note(part(key, "properties.backendAddressPools", name), Some(&pool));
        self.is_touched = true;
    }

    /// Puts an outbound rule in the place of one of the same name.
    pub fn set_outbound_rule(&mut self, key: &str, rule: OutboundRule) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let part = part(key, "properties.outboundRules", &rule.name);
        match balancer.outbound_rules.get_mut(&rule.name) {
            Some(known) if *known == rule => return,
            Some(known) => {
                self.journal.note(part, Some(&*known));
                *known = rule;
            }
            None => {
                self.journal.note(part, None::<&OutboundRule>);
                balancer.outbound_rules.push(rule);
            }
        }
        refer_outbound(balancer);
        self.is_touched = true;
    }

    /// Removes an outbound rule.
    pub fn remove_outbound_rule(&mut self, key: &str, name: &str) {
        let Some(balancer) = self.balancers.get_mut(key) else { return };
        let Some(rule) = balancer.outbound_rules.remove(name) else { return };
        self.journal.note(part(key, "properties.outboundRules", name), Some(&rule));
        refer_outbound(balancer);
        self.is_touched = true;
    }

    /// Puts a NAT gateway there, or removes it.
    pub fn set_nat_gateway(&mut self, key: &str, gateway: Option<NatGateway>) {
        let known = self.nat_gateways.get(key);
        if known == gateway.as_ref() {
            return;
        }
        self.journal.note(Part::whole(format!("natgateways/{key}")), known);
        match gateway {
            Some(gateway) => self.nat_gateways.insert(key.to_owned(), gateway),
            None => self.nat_gateways.remove(key),
        };
        self.is_touched = true;
    }

    /// Ends a step: every change since the last one.
    pub fn finish_step(&mut self) -> Vec<Change> {
        let mut journal = std::mem::take(&mut self.journal);
        let changes = journal.finish(|part, is_wanted| self.current(part, is_wanted));
        self.pool.start_step();
        self.subnets.start_step();
        changes
    }

    /// What a part is like now; unless that is wanted, any value says that it is there.
    fn current(&self, part: &Part, is_wanted: bool) -> Option<Value> {
        fn value<T: serde::Serialize>(value: Option<&T>, is_wanted: bool) -> Option<Value> {
            let value = value?;
            Some(if is_wanted {
                serde_json::to_value(value).unwrap_or_default()
            } else {
                Value::Null
            })
        }
        let (kind, key) = part.resource.split_once('/')?;
        let name = &part.name;
        match kind {
            "publicipaddresses" => value(self.public_ips.get(key), is_wanted),
            "natgateways" => value(self.nat_gateways.get(key), is_wanted),
            "networksecuritygroups" => match part.list {
                "" => value(Some(self.security_group.head()), is_wanted),
                _ if part.item.is_empty() => value(self.security_group.own_rule(name), is_wanted),
                _ => self.security_group.has_destination(part).then_some(Value::Null),
            },
            _ => {
                let balancer = self.balancers.get(key)?;
                match part.list {
                    "" => value(Some(&balancer.head), is_wanted),
                    "properties.frontendIPConfigurations" => {
                        value(balancer.frontends.get(name), is_wanted)
                    }
                    "properties.backendAddressPools" => value(balancer.pools.get(name), is_wanted),
                    "properties.loadBalancingRules" => value(balancer.rules.get(name), is_wanted),
                    "properties.probes" => value(balancer.probes.get(name), is_wanted),
                    _ => value(balancer.outbound_rules.get(name), is_wanted),
                }
            }
        }
    }

    /// Everything as resources, without a copy.
    pub fn into_resources(self) -> Resources {
        let mut groups = self.other_groups;
        let group = self.security_group.resource();
        groups.insert(group.name.to_lowercase(), group);
        let balancers = self.balancers.into_iter();
        Resources {
            load_balancers: balancers.map(|(key, b)| (key, b.into_resource())).collect(),
            public_ip_addresses: self.public_ips,
            public_ip_prefixes: self.prefixes,
            nat_gateways: self.nat_gateways,
            network_security_groups: groups,
            route_tables: self.route_tables,
            others: self.others,
        }
    }

    /// Everything as resources.
    pub fn resources(&self) -> Resources {
        let mut groups = self.other_groups.clone();
        let group = self.security_group.resource();
        groups.insert(group.name.to_lowercase(), group);
        Resources {
            load_balancers: self
                .balancers
                .iter()
                .map(|(key, balancer)| (key.clone(), balancer.resource()))
                .collect(),
            public_ip_addresses: self.public_ips.clone(),
            public_ip_prefixes: self.prefixes.clone(),
            nat_gateways: self.nat_gateways.clone(),
            network_security_groups: groups,
            route_tables: self.route_tables.clone(),
            others: self.others.clone(),
        }
    }
}

/// A part of a load balancer.
fn part(key: &str, list: &'static str, name: &str) -> Part {
    Part::of(balancer_key(key), list, name)
}

fn balancer_key(key: &str) -> String {
    format!("loadbalancers/{key}")
}

fn ip_key(key: &str) -> String {
    format!("publicipaddresses/{key}")
}

/// One name may have an address of each family.
fn label_key(label: &str, family: Family) -> String {
    format!("{} {}", family.as_str(), label.to_lowercase())
}

fn label(ip: &PublicIPAddress) -> Option<String> {
    let label = ip.properties.dns_settings.as_ref()?.domain_name_label.as_ref()?;
    Some(label_key(label, public_ips::family(ip)))
}

/// The private address of a frontend.
pub fn private_address(frontend: &FrontendIPConfiguration) -> Option<IpAddr> {
    frontend.properties.private_ip_address.as_ref()?.parse().ok()
}

fn remove_reference(references: &mut Vec<SubResource>, name: &str) {
    references.retain(|reference| !reference.name().eq_ignore_ascii_case(name));
}

/// The id of a subnet of the cluster's network.
pub fn subnet_id(config: &ProviderConfig, subnet: &str) -> String {
    let place = config.place_in(&config.vnet_resource_group);
    format!("{}/subnets/{subnet}", place.id("virtualNetworks", &config.vnet))
}

/// Everything in a load balancer that belongs to the Service with this prefix: rules, probes and
/// frontends by name.
pub fn owned(names: Vec<String>, prefix: &str) -> Vec<String> {
    names.into_iter().filter(|name| names::is_owned(name, prefix)).collect()
}
