//! Steps: which Services are looked at and in which order, and what they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::addresses::{DEFAULT_POOLS, Pool};
use super::admission::{self, Admission, Wanted};
use super::aks;
use super::annotations::Refusal;
use super::backends;
use super::config::ProviderConfig;
use super::defaults;
use super::families;
use super::intent::Intent;
use super::names::{self, Family};
use super::public_ips;
use super::removal::{self, Owner, Owners};
use super::security_group::Claims;
use super::service::{self, Backends};
use super::state::State;
use super::{ClusterPlan, FINALIZER, Plan, PlanInput, ServicePlan};
use crate::cluster::PublicIPPool;
use crate::kubernetes::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use crate::pools::Occupied;
use crate::resources::Resources;

/// Makes a plan: one whole step.
pub fn plan(input: PlanInput) -> Plan {
    let (planner, step) = Planner::new(input);
    Plan { resources: planner.state.into_resources(), ..step }
}

/// The planner with a memory.
#[derive(Debug, Clone)]
pub struct Planner {
    state: State,
    config: ProviderConfig,
    backends: Backends,
    services: BTreeMap<String, Known>,
    /// Which Service owns what starts with a prefix (in lower case).
    owners: Owners,
    has_nodes: bool,
    cluster: Option<ClusterPlan>,
}

/// What is known of a Service.
#[derive(Debug, Clone, Default)]
struct Known {
    service: Service,
    prefix: String,
    claims: Claims,
    addresses: Vec<IpAddr>,
    uses_node_addresses: bool,
}

/// What became of one Service in a step.
struct Outcome {
    refusal: Option<Refusal>,
    is_changed: bool,
    /// Warnings between the first and the last event.
    events: Vec<String>,
    warnings: Vec<String>,
}

impl Planner {
    /// Makes a planner from what exists and brings everything in line with `input`. The returned
    /// plan has no resources: ask [`Planner::resources`].
    pub fn new(mut input: PlanInput) -> (Planner, Plan) {
        let mut step = Plan::default();
        let mut config = std::mem::take(&mut input.config);
        aks::settle_config(&mut config, &input, &mut step);
        let mut pool = read_pools(&input, &mut step);
        input.taken.iter().for_each(|address| pool.take(*address));
        let mut state = State::read(std::mem::take(&mut input.resources), &config, pool);
        state.kept = std::mem::take(&mut input.kept);
        for node in &input.nodes {
            for address in node.internal_ips() {
                state.subnets.take(address);
            }
        }
        let refused = public_ips::add_given(&mut state, &config, &input.public_ips);
        step.refused.extend(refused);
        state.fill_addresses();
        let group = &mut state.security_group;
        group.tag(&config, &mut state.journal);
        aks::replace_basic(&mut state, &config);
        let mut planner = Planner {
            state,
            config,
            backends: Backends {
                unreadable: input.unreadable_nodes.clone(),
                ..Backends::default()
            },
            services: BTreeMap::new(),
            owners: Owners::new(),
            has_nodes: false,
            cluster: None,
        };
        planner.read_nodes(&input.nodes);
        if let Some(cluster) = &input.cluster {
            let before = input.cluster_before.as_ref();
            let plan = aks::reconcile(
                &mut planner.state,
                &planner.config,
                cluster,
                &input,
                before,
                &mut step,
            );
            planner.cluster = Some(plan);
        }
        let changed_pools = planner.update_pools();
        planner.first_step(input, &changed_pools, &mut step);
        step.cluster.clone_from(&planner.cluster);
        let mut changes = planner.state.finish_step();
        step.changes.append(&mut changes);
        (planner, step)
    }

    /// Brings one Service in line: a new one, a changed one, or one that is no load balancer any
    /// more. The returned plan has no resources: ask [`Planner::resources`].
    pub fn apply(&mut self, service: Service) -> Plan {
        let mut step = Plan::default();
        let key = service.metadata.key();
        if let Some(why) = admission::violations(&service) {
            self.tell(&key, &service, Outcome::refused(Refusal(why)), &mut step);
        } else if admission::is_ours(&service) {
            let outcome = self.reconcile(&service);
            self.tell(&key, &service, outcome, &mut step);
        } else {
            let existed = self.services.contains_key(&key);
            self.leave(&service, existed, &mut step);
        }
        self.end_step(step)
    }

    /// Takes away what a deleted Service had.
    pub fn delete(&mut self, key: &str) -> Plan {
        let mut step = Plan::default();
        if self.services.contains_key(key) {
            let events = self.remove(key);
            step.services.insert(key.to_owned(), deleted(events));
        }
        self.end_step(step)
    }

    /// Takes new nodes: pools follow, and security rules of Services without floating IP.
    pub fn set_nodes(&mut self, nodes: &[Node]) -> Plan {
        let mut step = Plan::default();
        for node in nodes {
            for address in node.internal_ips() {
                self.state.subnets.take(address);
            }
        }
        self.read_nodes(nodes);
        let changed_pools = self.update_pools();
        let affected: Vec<Service> = self
            .services
            .values()
            .filter(|known| known.uses_node_addresses)
            .map(|known| known.service.clone())
            .collect();
        for service in affected {
            let outcome = self.reconcile(&service);
            self.tell(&service.metadata.key(), &service, outcome, &mut step);
        }
        self.tell_of_pools(&changed_pools, &mut step);
        self.end_step(step)
    }

    /// Everything that should exist.
    pub fn resources(&self) -> Resources {
        self.state.resources()
    }

    /// The settings in force.
    pub fn config(&self) -> &ProviderConfig {
        &self.config
    }

    fn end_step(&mut self, mut step: Plan) -> Plan {
        step.changes.extend(self.state.finish_step());
        step
    }

    fn read_nodes(&mut self, nodes: &[Node]) {
        let mut sorted: Vec<&Node> =
            nodes.iter().filter(|node| backends::is_backend(node, &self.config)).collect();
        sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let unreadable = std::mem::take(&mut self.backends.unreadable);
        let families = families::of_cluster(nodes);
        let mut found = Backends { families, unreadable, ..Backends::default() };
        for node in &sorted {
            if let Some((address, member)) = backends::member(node, Family::V4) {
                found.v4.push(member);
                found.addresses.push(address);
            }
            if let Some((address, member)) = backends::member(node, Family::V6) {
                found.v6.push(member);
                found.addresses.push(address);
            }
        }
        self.has_nodes = !sorted.is_empty();
        self.backends = found;
    }

    /// Brings the members of every pool of Services up to date. Returns the load balancers whose
    /// pools changed.
    fn update_pools(&mut self) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for internal in [false, true] {
            let key = self.config.load_balancer(internal).to_lowercase();
            if service::is_preconfigured(&self.config, internal) {
                continue;
            }
            for family in [Family::V4, Family::V6] {
                let name = names::pool(&self.config.cluster, family);
                let Some(balancer) = self.state.balancers.get(&key) else { continue };
                let Some(pool) = balancer.pools.get(&name) else { continue };
                let members = &pool.properties.load_balancer_backend_addresses;
                // A pool that no Service has filled yet is filled with the first rule.
                let is_idle = members.is_empty() && self.cluster.is_none();
                let Backends { unreadable, .. } = &self.backends;
                let wanted = self.backends.of(family);
                let updated = service::with_members(pool.clone(), wanted, unreadable, &self.config);
                if updated != *pool && !is_idle {
                    self.state.set_pool(&key, updated);
                    changed.insert(key.clone());
                }
            }
        }
        changed
    }

    /// The first step: everything that exists against everything that is asked for.
    fn first_step(&mut self, input: PlanInput, changed_pools: &BTreeSet<String>, step: &mut Plan) {
        let places = self.places_in_state();
        let Admission { mut wanted, leaving } =
            admission::admit(input.services, input.unreadable, &places);
        let others = wanted.iter().map(|wanted| &wanted.service).chain(&leaving);
        let mut claimed: BTreeSet<String> = others.map(admission::prefix).collect();
        for refused in wanted.iter_mut().filter(|wanted| wanted.refused.is_some()) {
            self.identify(refused, &places, input.told.get(&refused.key), &mut claimed);
        }
        for Wanted { key, service, .. } in &wanted {
            let owner = Owner { key: key.clone(), frontends: None };
            self.owners.entry(admission::prefix(service)).or_insert(owner);
        }
        self.remove_gone(&wanted, &leaving, &places, &input.told, step);
        for service in leaving {
            let uid = service.metadata.uid.as_deref().unwrap_or_default();
            let prefix = names::service_prefix(uid);
            let key = service.metadata.key();
            let existed = removal::has_remains(&self.state, &self.config, &prefix, &key);
            self.leave(&service, existed, step);
        }
        let mut refused = Vec::new();
        let mut held = BTreeSet::new();
        for Wanted { key, service, refused: why } in wanted {
            if let Some(why) = why {
                let is_told = self.services.contains_key(&key);
                self.hold(&key, &service, &mut held);
                if !is_told {
                    self.tell(&key, &service, Outcome::refused(Refusal(why)), step);
                }
                continue;
            }
            let outcome = self.reconcile(&service);
            if outcome.refusal.is_some() {
                refused.push((key, service, outcome));
            } else {
                self.tell(&key, &service, outcome, step);
            }
        }
        self.try_again(refused, &mut held, step);
        let mut journal = std::mem::take(&mut self.state.journal);
        self.state.security_group.drop_unwanted(|address| held.contains(address), &mut journal);
        self.state.journal = journal;
        self.tell_of_pools(changed_pools, step);
    }

    /// Whoever is refused keeps what it has, also if its author does not know its uid: the state
    /// knows the digits that names begin with, by the name that a public IP bears or the address
    /// that the Service was told. `claimed` are those that somebody has.
    fn identify(
        &self,
        refused: &mut Wanted,
        places: &BTreeMap<String, usize>,
        told: Option<&ServicePlan>,
        claimed: &mut BTreeSet<String>,
    ) {
        let service = &mut refused.service;
        let has_own_uid = defaults::has_own_uid(service);
        defaults::give_uid(service);
        if has_own_uid || places.contains_key(&admission::prefix(service)) {
            return;
        }
        let key = refused.key.to_lowercase();
        let by_name = places.keys().find(|prefix| self.owner_of(prefix).as_ref() == Some(&key));
        let told = told.map_or(&[][..], |told| &told.status.ingress);
        let addresses: Vec<IpAddr> =
            told.iter().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect();
        let by_address = || {
            let has = |prefix: &str| {
                let found = self.addresses_of(prefix, &mut BTreeSet::new());
                found.iter().any(|address| addresses.contains(address))
            };
            places.keys().find(|prefix| {
                !claimed.contains(*prefix) && self.owner_of(prefix).is_none() && has(prefix)
            })
        };
        if let Some(prefix) = by_name.or_else(by_address) {
            service.metadata.uid = prefix.get(1..).map(str::to_owned);
            claimed.insert(prefix.clone());
        }
    }

    /// A Service may wait for what another one was still to make: asks again as long as that
    /// helps, so that the result does not hang on who came first.
    fn try_again(
        &mut self,
        mut refused: Vec<(String, Service, Outcome)>,
        held: &mut BTreeSet<String>,
        step: &mut Plan,
    ) {
        // BOUND: every round but the last has one refusal less.
        loop {
            let before = refused.len();
            let mut still = Vec::new();
            for (key, service, _) in refused {
                let outcome = self.reconcile(&service);
                if outcome.refusal.is_some() {
                    still.push((key, service, outcome));
                } else {
                    self.tell(&key, &service, outcome, step);
                }
            }
            refused = still;
            if refused.is_empty() || refused.len() == before {
                break;
            }
        }
        for (key, service, outcome) in refused {
            self.hold(&key, &service, held);
            self.tell(&key, &service, outcome, step);
        }
    }

    /// Which Services the state knows, by their prefixes in lower case, in the order in which
    /// their frontends and rules stand there.
    fn places_in_state(&self) -> BTreeMap<String, usize> {
        let mut places = BTreeMap::new();
        for internal in [false, true] {
            let name = self.config.load_balancer(internal);
            let Some(balancer) = self.state.balancer(&name) else { continue };
            let of_frontends = balancer
                .frontends
                .iter()
                .filter_map(|frontend| removal::frontend_owner(frontend, &self.config));
            let rules = balancer.rules.iter().filter_map(|rule| names::rule_owner(&rule.name));
            for prefix in of_frontends.chain(rules.map(str::to_lowercase)) {
                let next = places.len();
                places.entry(prefix).or_insert(next);
            }
        }
        places
    }

    /// Removes what belongs to Services that are not asked for any more.
    fn remove_gone(
        &mut self,
        wanted: &[Wanted],
        leaving: &[Service],
        places: &BTreeMap<String, usize>,
        told: &BTreeMap<String, ServicePlan>,
        step: &mut Plan,
    ) {
        let mut keys: BTreeSet<String> =
            wanted.iter().map(|wanted| wanted.key.to_lowercase()).collect();
        keys.extend(leaving.iter().map(|service| service.metadata.key().to_lowercase()));
        let mut gone: BTreeSet<String> = self.state.tagged_services();
        let had = told.iter().filter(|(_, plan)| !plan.finalizers.is_empty());
        gone.extend(had.map(|(key, _)| key.clone()));
        gone.retain(|key| !keys.contains(&key.to_lowercase()));
        // Which of them had a frontend that somebody else keeps is told where its name is known.
        let mut warnings: BTreeMap<String, Vec<removal::Kept>> = BTreeMap::new();
        let of_leaving: BTreeSet<String> = leaving.iter().map(admission::prefix).collect();
        for prefix in places.keys() {
            if self.owners.contains_key(prefix) || of_leaving.contains(prefix) {
                continue;
            }
            let owner = self.owner_of(prefix);
            let kept = removal::remove(
                &mut self.state,
                &self.config,
                prefix,
                None,
                &Claims::new(),
                &self.owners,
            );
            if let Some(owner) = owner {
                warnings.entry(owner).or_default().extend(kept);
            }
        }
        for key in gone {
            let none = Claims::new();
            let owners = &self.owners;
            removal::remove(&mut self.state, &self.config, "", Some(&key), &none, owners);
            // Who kept it may be gone by now too.
            let mut kept = warnings.remove(&key.to_lowercase()).unwrap_or_default();
            kept.retain(|kept| {
                let mut balancers = self.state.balancers.values();
                balancers.any(|one| one.frontends.iter().any(|found| found.id == kept.id))
            });
            let events = kept.iter().map(removal::Kept::warning).collect();
            step.services.insert(key, deleted(events));
        }
    }

    /// The Service that the things with this prefix belong to, in lower case: the first one in the
    /// tag of the public IP that bears the prefix.
    fn owner_of(&self, prefix: &str) -> Option<String> {
        let name = names::public_ip(&self.config.cluster, prefix, None, false);
        let ip = self.state.public_ip(&name)?;
        public_ips::services(ip).first().map(|key| key.to_lowercase())
    }

    /// A Service that is not, or no longer, a load balancer of ours.
    fn leave(&mut self, service: &Service, existed: bool, step: &mut Plan) {
        let key = service.metadata.key();
        let has_class = service.spec.load_balancer_class.is_some();
        let was_ours = existed || service.metadata.finalizers.iter().any(|f| f == FINALIZER);
        if has_class && !existed || !was_ours {
            let plan = ServicePlan {
                status: service.status.load_balancer.clone(),
                finalizers: service.metadata.finalizers.clone(),
                events: Vec::new(),
            };
            step.services.insert(key, plan);
            return;
        }
        let uid = service.metadata.uid.as_deref().unwrap_or_default();
        let prefix = names::service_prefix(uid);
        let known = self.services.entry(key.clone()).or_default();
        known.prefix = prefix;
        let mut plan = deleted(self.remove(&key));
        plan.finalizers =
            service.metadata.finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect();
        step.services.insert(key, plan);
    }

    /// Removes a known Service; returns warnings.
    fn remove(&mut self, key: &str) -> Vec<String> {
        let known = self.services.remove(key).unwrap_or_default();
        if self.owners.get(&known.prefix.to_lowercase()).is_some_and(|owner| owner.key == key) {
            self.owners.remove(&known.prefix.to_lowercase());
        }
        removal::remove(
            &mut self.state,
            &self.config,
            &known.prefix,
            Some(key),
            &known.claims,
            &self.owners,
        )
        .iter()
        .map(removal::Kept::warning)
        .collect()
    }

    /// Looks at one Service and edits what has to be edited.
    fn reconcile(&mut self, service: &Service) -> Outcome {
        let key = service.metadata.key();
        let intent = match Intent::read(service, &self.config, &self.backends.families) {
            Ok(intent) => intent,
            Err(refusal) => return Outcome::refused(refusal),
        };
        let prefix = intent.prefix.to_lowercase();
        let new = || Owner { key: key.clone(), frontends: None };
        let owner = self.owners.entry(prefix.clone()).or_insert_with(new);
        if owner.key != key {
            return Outcome::refused(Refusal(format!(
                "metadata.uid: starts with the same 31 digits as that of Service {}, so that both \
                 would own what is named by them: create one of the two anew",
                owner.key
            )));
        }
        let old = self.services.get(&key).map(|known| known.claims.clone()).unwrap_or_default();
        let decision = service::decide(&self.state, &self.config, &intent, &old, &self.backends);
        let decision = match decision {
            Ok(decision) => decision,
            Err(refusal) => {
                return Outcome { warnings: intent.warnings, ..Outcome::refused(refusal) };
            }
        };
        let mut warnings = intent.warnings.clone();
        warnings.extend(decision.placements.iter().filter_map(|place| place.warning.clone()));
        let balancer = decision.balancer.to_lowercase();
        let frontends = decision.placements.iter();
        let frontends =
            frontends.map(|place| (balancer.clone(), place.frontend.to_lowercase())).collect();
        self.owners.insert(prefix, Owner { key: key.clone(), frontends: Some(frontends) });
        self.state.is_touched = false;
        let given = service::apply(
            &mut self.state,
            &self.config,
            &intent,
            decision,
            &old,
            &self.backends,
            &self.owners,
        );
        let mut events = given.kept;
        if intent.internal_by_case {
            events.push(
                "Warning InternalByCase: annotation service.beta.kubernetes.io/\
                 azure-load-balancer-internal is not exactly \"true\": internal here, and Azure \
                 would have made it public: write \"true\""
                    .to_owned(),
            );
        }
        if !self.has_nodes {
            events.push(
                "Warning UnAvailableLoadBalancer: There are no available nodes for LoadBalancer"
                    .to_owned(),
            );
        }
        let known = Known {
            service: service.clone(),
            prefix: intent.prefix,
            claims: given.claims,
            addresses: given.addresses,
            uses_node_addresses: !intent.floating_ip,
        };
        self.services.insert(key, known);
        Outcome { refusal: None, is_changed: self.state.is_touched, events, warnings }
    }

    /// Keeps the destinations of a refused Service in the security group as they are.
    fn hold(&mut self, key: &str, service: &Service, held: &mut BTreeSet<String>) {
        let uid = service.metadata.uid.as_deref().unwrap_or_default();
        let prefix = names::service_prefix(uid);
        let mut addresses = self.addresses_of(&prefix, held);
        let notes = service
            .metadata
            .annotations
            .get(&format!("{}azure-additional-public-ips", super::annotations::PREFIX));
        let more = notes.map_or("", String::as_str).split(',');
        if !addresses.is_empty() {
            for address in more.filter_map(|text| text.trim().parse::<IpAddr>().ok()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        held.extend(addresses.iter().map(IpAddr::to_string));
        let known = Known { service: service.clone(), prefix, addresses, ..Known::default() };
        self.services.entry(key.to_owned()).or_insert(known);
    }

    /// The addresses of what is named by `prefix`, in their order. Where its rules lead to nodes,
    /// those are held.
    fn addresses_of(&self, prefix: &str, held: &mut BTreeSet<String>) -> Vec<IpAddr> {
        let mut addresses = BTreeSet::new();
        for internal in [false, true] {
            let name = self.config.load_balancer(internal).to_lowercase();
            let Some(balancer) = self.state.balancers.get(&name) else { continue };
            for frontend in service::owned_frontends(balancer, prefix) {
                addresses.extend(service::frontend_address(&self.state, &name, frontend));
            }
            for rule in service::owned_rules(balancer, prefix) {
                let frontend = rule.properties.frontend_ip_configuration.as_ref();
                let frontend = frontend.map_or("", |frontend| frontend.name());
                addresses.extend(service::frontend_address(&self.state, &name, frontend));
                if rule.properties.enable_floating_ip == Some(false) {
                    held.extend(self.backends.addresses.iter().map(IpAddr::to_string));
                }
            }
        }
        addresses.into_iter().collect()
    }

    /// Writes down what a Service is told.
    fn tell(&mut self, key: &str, service: &Service, outcome: Outcome, step: &mut Plan) {
        for warning in outcome.warnings {
            step.warnings.push(format!("Service {key}: {warning}"));
        }
        let mut events = Vec::new();
        let is_told = outcome.is_changed || outcome.refusal.is_some();
        if is_told {
            events.push("Normal EnsuringLoadBalancer: Ensuring load balancer".to_owned());
            events.extend(outcome.events);
        }
        match outcome.refusal {
            Some(Refusal(why)) => {
                events.push(format!(
                    "Warning SyncLoadBalancerFailed: Error syncing load balancer: failed to \
                     ensure load balancer: {why} (Service {key})"
                ));
                step.refused.push(format!("Service {key}: {why}"));
            }
            None if is_told => {
                events.push("Normal EnsuredLoadBalancer: Ensured load balancer".to_owned());
            }
            None => {}
        }
        let known = self.services.get(key);
        let addresses = known.map(|known| known.addresses.as_slice()).unwrap_or_default();
        let mut finalizers = service.metadata.finalizers.clone();
        // Who was refused for not being a load balancer has nothing to guard.
        let is_guarded = admission::is_ours(service) || !addresses.is_empty();
        if is_guarded && !finalizers.iter().any(|known| known == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        let plan = ServicePlan { status: status(addresses), finalizers, events };
        step.services.insert(key.to_owned(), plan);
    }

    /// Services whose pools changed are told so, unless they were told anyway.
    fn tell_of_pools(&mut self, balancers: &BTreeSet<String>, step: &mut Plan) {
        for key in balancers {
            let Some(balancer) = self.state.balancers.get(key) else { continue };
            let told: Vec<String> = self
                .services
                .iter()
                .filter(|(_, known)| service::owned_rules(balancer, &known.prefix).next().is_some())
                .map(|(key, _)| key.clone())
                .collect();
            for key in told {
                let Some(known) = self.services.get(&key) else { continue };
                let service = known.service.clone();
                if step.services.get(&key).is_some_and(|plan| !plan.events.is_empty()) {
                    continue;
                }
                let mut events = Vec::new();
                if !self.has_nodes {
                    events.push(
                        "Warning UnAvailableLoadBalancer: There are no available nodes for \
                         LoadBalancer"
                            .to_owned(),
                    );
                }
                let outcome =
                    Outcome { refusal: None, is_changed: true, events, warnings: Vec::new() };
                self.tell(&key, &service, outcome, step);
            }
        }
    }
}

impl Outcome {
    fn refused(refusal: Refusal) -> Self {
        Outcome {
            refusal: Some(refusal),
            is_changed: false,
            events: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// What a deleted Service is told.
fn deleted(warnings: Vec<String>) -> ServicePlan {
    let mut events = vec!["Normal DeletingLoadBalancer: Deleting load balancer".to_owned()];
    events.extend(warnings);
    events.push("Normal DeletedLoadBalancer: Deleted load balancer".to_owned());
    ServicePlan { status: LoadBalancerStatus::default(), finalizers: Vec::new(), events }
}

/// The content of `status.loadBalancer`.
fn status(addresses: &[IpAddr]) -> LoadBalancerStatus {
    let entry = |ip: &IpAddr| LoadBalancerIngress { ip: Some(ip.to_string()), hostname: None };
    LoadBalancerStatus { ingress: addresses.iter().map(entry).collect() }
}

/// The pool of public addresses; a bad one is refused and the others are used.
fn read_pools(input: &PlanInput, step: &mut Plan) -> Pool {
    if input.pools.is_empty() && !input.has_unreadable_pool {
        return Pool::read(DEFAULT_POOLS).unwrap_or_default();
    }
    let occupied = Occupied::of(input.cluster.as_ref().map(|cluster| &cluster.spec), &input.nodes);
    let mut sorted: Vec<&PublicIPPool> = input.pools.iter().collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut prefixes = Vec::new();
    for pool in sorted {
        let own: Vec<&str> = pool.spec.prefixes.iter().map(String::as_str).collect();
        let name = &pool.metadata.name;
        if own.is_empty() {
            step.refused.push(format!(
                "PublicIPPool {name}: spec.prefixes is empty: list CIDRs or addresses"
            ));
        }
        let readable = Pool::read(own.iter().copied());
        match readable.and_then(|_| occupied.conflict(pool).map_or(Ok(()), Err)) {
            Ok(()) => prefixes.extend(own),
            Err(why) => step.refused.push(format!("PublicIPPool {name}: spec.prefixes: {why}")),
        }
    }
    Pool::read(prefixes).unwrap_or_default()
}
