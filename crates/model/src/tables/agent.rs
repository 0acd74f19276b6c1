//! The tables of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use datapath::limits::{
    ALLOWED_SOURCES_MAX, BLOCK_PORTS, BLOCKS_MAX, ENDPOINTS_MAX, INBOUND_ALLOWANCE,
    PRIVATE_RANGES_MAX, QUOTAS_MAX, SEGMENTS_MAX, VIPS_MAX,
};
use datapath::tables::{
    Allowance, Block, Endpoint, Policy, Quota, RuleKey, Segment, Service, Source, Ticks, Timers,
    Translation, agent_flag, block_flag, policy_flag, rule_flag,
};
use ipnet::{IpNet, Ipv4Net};

use super::{Address, TablesError, changed, gone, internal_ranges};
use crate::addresses::existing;
use crate::backends::{PublicRule, public_rules};
use crate::cluster::{FlowTimers, IcmpEcho, Ipv6, LastHop, Quotas};
use crate::decide::route_exceptions;
use crate::lease::LeaseState;
use crate::method::{Method, Protocol};
use crate::objects::Objects;
use crate::places::{Runs, places};
use crate::pods::Pod;
use crate::runtime::{NodeNetwork, NodeOutbound};
use crate::tags::Tags;
use crate::truth::{self, Truth};

/// Blocks whose positions share a word of a bitmap over positions: 64 positions / 8.
const BLOCKS_PER_WORD: u32 = 8;

/// Which policy stands where. The places are fixed, so a change of method is a change of one row.
pub mod policy_index {
    /// No way out.
    pub const REFUSE: u8 = 0;
    /// Somebody else translates.
    pub const UNTRANSLATED: u8 = 1;
    /// TCP of the node and its pods.
    pub const TCP: u8 = 2;
    /// UDP of the node and its pods.
    pub const UDP: u8 = 3;
    /// ICMP echo of the node and its pods.
    pub const ICMP: u8 = 4;
    /// Everything else, where the node has an address for itself.
    pub const OTHER: u8 = 5;
}

/// Everything that the tables of a node hold. Rows of arrays that are all zeroes are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentTables {
    /// Epoch of the order that this follows.
    pub epoch: u32,
    /// The node's address.
    pub node: Address,
    /// [`agent_flag`]s.
    pub flags: u32,
    /// How long flows that are not established may be silent: the load balancer's, then the NAT
    /// gateway's.
    pub timers: [Timers; 2],
    /// Sources that leave by policies.
    pub sources: BTreeMap<Ipv4Net, Source>,
    /// Destinations that are not translated.
    pub private_ranges: BTreeSet<Ipv4Net>,
    /// Policies by index.
    pub policies: BTreeMap<u32, Policy>,
    /// The holding, by index. Blocks of one address fill whole words of positions.
    pub blocks: BTreeMap<u32, Block>,
    /// Positions that new flows may take, by word of 64; what is not set is barred.
    pub open: BTreeMap<u32, u64>,
    /// Addresses that blocks point to, by index.
    pub frontends: BTreeMap<u32, Address>,
    /// Ports of the holding that listeners have taken: no table has them; the agent ends the flows
    /// that it finds on them.
    pub taken: BTreeSet<(Address, u16)>,
    /// Public addresses of the cluster.
    pub vips: BTreeSet<Address>,
    /// Muxes that wrapped packets come from.
    pub muxes: BTreeSet<Address>,
    /// Keys of their tags.
    pub tags: Tags,
    /// Pods, nodes and muxes: nothing comes in from them.
    pub internal: BTreeSet<Ipv4Net>,
    /// Who may use restricted Service ports.
    pub allowed_sources: BTreeSet<(RuleKey<Address>, Ipv4Net)>,
    /// Service ports that pods of this node serve.
    pub services: BTreeMap<RuleKey<Address>, Service>,
    /// The pods, in runs.
    pub endpoints: BTreeMap<u32, Endpoint<Address>>,
    /// Whose allowances the flows of a pod use.
    pub quotas: BTreeMap<Address, Quota>,
    /// Limits of allowances, by row.
    pub allowances: BTreeMap<u32, u32>,
    /// Who each pod's address belonged to when its flows were opened. Programs do not ask; it is
    /// kept in the kernel to outlive the agent as flows do.
    pub pods: BTreeMap<Address, u64>,
    /// What the flows are held against: no table has it.
    pub truth: Truth,
}

/// A change of one row. `None` and zeroes remove.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEdit {
    /// `sources`
    Source(Ipv4Net, Option<Source>),
    /// `private_ranges`: present or not.
    PrivateRange(Ipv4Net, bool),
    /// `policies`
    Policy(u32, Policy),
    /// `blocks`
    Block(u32, Block),
    /// Row 0 of `positions`: in this word, only these positions may be taken by new flows.
    Open(u32, u64),
    /// `frontends`
    Frontend(u32, Address),
    /// `vips`: present or not.
    Vip(Address, bool),
    /// `muxes`: present or not.
    Mux(Address, bool),
    /// `internal_ranges`: present or not.
    Internal(Ipv4Net, bool),
    /// `allowed_sources`: Service port, sources, present or not.
    AllowedSource(RuleKey<Address>, Ipv4Net, bool),
    /// `services`
    Service(RuleKey<Address>, Option<Service>),
    /// `endpoints`
    Endpoint(u32, Endpoint<Address>),
    /// `quotas`
    Quota(Address, Option<Quota>),
    /// `allowances`: the limit; the rest is the programs' and the sweep's.
    Allowance(u32, u32),
    /// `pods`: who has the address.
    Pod(Address, Option<u64>),
}

/// What the tables of `node` should hold, where `present` is what they hold.
///
/// # Errors
/// [`TablesError`]: there is nothing to apply, and what stands there stays.
pub fn agent_tables(
    objects: &Objects,
    node: &str,
    present: &AgentTables,
) -> Result<AgentTables, TablesError> {
    let (kind, name) = ("NodeNetwork", node.to_owned());
    let Some(network) = objects.node_networks.get(node) else {
        return Err(TablesError::Missing { kind, name });
    };
    let Some(address) = network.spec.address else {
        return Err(TablesError::NoAddress { kind, name });
    };
    let offered = network.spec.epoch;
    if offered < present.epoch {
        return Err(TablesError::StaleEpoch { kind, name, applied: present.epoch, offered });
    }
    let tags = Tags::of(objects, present.tags);
    let check_tags = if tags.check { agent_flag::CHECK_TAGS } else { 0 };
    let mut tables = AgentTables {
        epoch: offered,
        node: Address::from(address),
        flags: flags(objects, network) | check_tags,
        tags,
        internal: internal_ranges(objects),
        timers: objects.cluster().timers.rows(),
        sources: sources(objects, node, network, address),
        private_ranges: untranslated(objects),
        vips: existing(objects).into_iter().map(Address::from).take(VIPS_MAX as usize).collect(),
        muxes: objects
            .mux_networks
            .values()
            .filter_map(|mux| mux.spec.address)
            .map(Address::from)
            .collect(),
        taken: network
            .spec
            .leases
            .iter()
            .flat_map(|lease| {
                lease.taken.iter().map(|port| (Address::from(lease.range.address), *port))
            })
            .collect(),
        ..AgentTables::default()
    };
    tables.place_blocks(network, present);
    tables.place_policies(network, &objects.cluster().timers);
    let rules = public_rules(objects);
    tables.pods = truth::record(objects, node, &present.pods);
    tables.truth = Truth::new(objects, node, &rules, &tables.pods);
    tables.place_services(objects, node, rules, present);
    tables.place_quotas(objects, node, present);
    Ok(tables)
}

fn flags(objects: &Objects, network: &NodeNetwork) -> u32 {
    let cluster = objects.cluster();
    let mut flags = agent_flag::QUOTAS;
    if cluster.last_hop == LastHop::KubeProxy {
        flags |= agent_flag::LAST_HOP_KUBE_PROXY;
    }
    if cluster.icmp_echo == IcmpEcho::Drop && network.spec.instance_public_ip.is_none() {
        flags |= agent_flag::DROP_ICMP_ECHO;
    }
    if cluster.ipv6 == Ipv6::Refuse {
        flags |= agent_flag::REFUSE_IPV6;
    }
    flags
}

fn outbound(network: &NodeNetwork, protocol: Protocol) -> Option<&NodeOutbound> {
    network.spec.outbound.iter().find(|outbound| outbound.protocol == protocol)
}

/// The node's own address and its pods'.
fn sources(
    objects: &Objects,
    node: &str,
    network: &NodeNetwork,
    address: Ipv4Addr,
) -> BTreeMap<Ipv4Net, Source> {
    let policy = |protocol, own| match outbound(network, protocol).map(|found| found.method) {
        Some(Method::UserDefinedRouting | Method::NotTranslated) => policy_index::UNTRANSLATED,
        Some(
            Method::NatGateway
            | Method::InstancePublicIp
            | Method::OutboundRule
            | Method::ImplicitSnat
            | Method::DefaultOutbound,
        ) => own,
        Some(Method::None) | None => policy_index::REFUSE,
    };
    let tcp = policy(Protocol::Tcp, policy_index::TCP);
    // Only a whole address can be used without ports.
    let method = outbound(network, Protocol::Tcp).map(|found| found.method);
    let other = match method {
        Some(Method::InstancePublicIp) => policy_index::OTHER,
        _ if tcp == policy_index::UNTRANSLATED => tcp,
        _ => policy_index::REFUSE,
    };
    let source = Source {
        tcp,
        udp: policy(Protocol::Udp, policy_index::UDP),
        icmp: policy(Protocol::Icmp, policy_index::ICMP),
        other,
    };
    let pods = objects
        .pods
        .values()
        .filter(|pod| pod.spec.node_name.as_deref() == Some(node))
        .filter_map(Pod::own_address)
        .filter(|address| !network.spec.pod_cidrs.iter().any(|cidr| cidr.contains(address)))
        .map(Ipv4Net::from);
    [Ipv4Net::from(address)]
        .into_iter()
        .chain(network.spec.pod_cidrs.iter().copied())
        .chain(pods)
        .map(|net| (net.trunc(), source))
        .collect()
}

/// Destinations that nobody here translates: private ranges, and routes to somebody else without
/// the parts of them that lead to the Internet after all.
fn untranslated(objects: &Objects) -> BTreeSet<Ipv4Net> {
    let mut nets: Vec<Ipv4Net> = Vec::new();
    let exceptions = route_exceptions(objects);
    for elsewhere in exceptions.iter().filter(|exception| !exception.translated) {
        let mut parts = vec![elsewhere.prefix];
        let inside = |part: Ipv4Net| elsewhere.prefix.contains(&part) && part != elsewhere.prefix;
        for hole in exceptions.iter().filter(|other| other.translated && inside(other.prefix)) {
            parts = parts.into_iter().flat_map(|part| without(part, hole.prefix)).collect();
        }
        nets.extend(parts);
    }
    let private = objects.cluster().private_ranges().into_iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    });
    // Private ranges come first where there are too many.
    let nets = private.chain(Ipv4Net::aggregate(&nets));
    nets.take(PRIVATE_RANGES_MAX as usize).collect()
}

/// `net` without `hole`.
fn without(net: Ipv4Net, hole: Ipv4Net) -> Vec<Ipv4Net> {
    if hole.contains(&net) {
        return Vec::new();
    }
    if !net.contains(&hole) {
        return vec![net];
    }
    // BOUND: prefixes grow by one bit each time, so 32 steps at most.
    match net.subnets(net.prefix_len() + 1) {
        Ok(halves) => halves.flat_map(|half| without(half, hole)).collect(),
        Err(_) => Vec::new(),
    }
}

impl AgentTables {
    /// Gives the holding its places. A word of positions belongs to one address.
    fn place_blocks(&mut self, network: &NodeNetwork, present: &AgentTables) {
        let addresses: BTreeSet<Address> =
            network.spec.leases.iter().map(|lease| Address::from(lease.range.address)).collect();
        let old: BTreeMap<Address, u32> =
            present.frontends.iter().map(|(index, address)| (*address, *index)).collect();
        let frontends = places(&old, addresses, 0, VIPS_MAX);
        self.frontends = frontends.iter().map(|(address, index)| (*index, *address)).collect();

        let mut wanted: BTreeMap<(u32, u16), bool> = BTreeMap::new();
        for lease in &network.spec.leases {
            let Some(frontend) = frontends.get(&Address::from(lease.range.address)) else {
                continue;
            };
            for start in lease.range.blocks() {
                wanted.insert((*frontend, start), lease.state == LeaseState::Usable);
            }
        }
        let mut free = FreePlaces::default();
        let mut placed: BTreeMap<(u32, u16), u32> = BTreeMap::new();
        for (index, block) in &present.blocks {
            let frontend = u32::from(block.frontend);
            free.take(*index, frontend);
            if wanted.contains_key(&(frontend, block.start)) {
                placed.entry((frontend, block.start)).or_insert(*index);
            }
        }
        for key in wanted.keys() {
            if !placed.contains_key(key)
                && let Some(index) = free.next(key.0)
            {
                placed.insert(*key, index);
            }
        }
        for ((frontend, start), index) in &placed {
            let usable = wanted.get(&(*frontend, *start)).copied().unwrap_or(false);
            let block = Block {
                frontend: *frontend as u16,
                start: *start,
                flags: if usable { block_flag::USABLE } else { 0 },
                reserved: 0,
            };
            self.blocks.insert(*index, block);
            if usable {
                let bits = 0xff << (index % BLOCKS_PER_WORD * BLOCK_PORTS);
                *self.open.entry(index / BLOCKS_PER_WORD).or_insert(0) |= bits;
            }
        }
    }

    fn place_policies(&mut self, network: &NodeNetwork, timers: &FlowTimers) {
        let untranslated =
            Policy { translation: Translation::Untranslated as u8, ..Policy::default() };
        self.policies.insert(policy_index::UNTRANSLATED.into(), untranslated);
        let own = [
            (Protocol::Tcp, policy_index::TCP),
            (Protocol::Udp, policy_index::UDP),
            (Protocol::Icmp, policy_index::ICMP),
        ];
        for (protocol, index) in own {
            let Some(outbound) = outbound(network, protocol) else { continue };
            if !outbound.method.translates() {
                continue;
            }
            let idle = Ticks::from_seconds(outbound.idle_timeout_in_minutes * 60).0;
            let is_gateway = outbound.method == Method::NatGateway;
            let mut flags = 0;
            if outbound.enable_tcp_reset {
                flags |= policy_flag::TCP_RESET;
            }
            if is_gateway {
                flags |= policy_flag::GATEWAY_TIMERS;
            }
            let gateway_udp = Ticks::from_seconds(timers.nat_gateway.udp_seconds).0;
            let mut policy = Policy {
                translation: Translation::Ports as u8,
                flags,
                idle_tcp: idle,
                // A NAT gateway's setting is for TCP alone.
                idle_udp: if is_gateway { gateway_udp } else { idle },
                idle_icmp: if is_gateway { gateway_udp } else { idle },
                ..Policy::default()
            };
            let addresses = outbound.addresses.iter();
            let mut segments: Vec<Segment> =
                addresses.flat_map(|address| self.segments(*address)).collect();
            self.bridge(&mut segments);
            for (place, segment) in policy.blocks.iter_mut().zip(segments) {
                *place = segment;
                policy.segments += 1;
            }
            self.policies.insert(index.into(), policy);
            if protocol == Protocol::Tcp && outbound.method == Method::InstancePublicIp {
                policy.flags |= policy_flag::WHOLE_ADDRESS;
                self.policies.insert(policy_index::OTHER.into(), policy);
            }
        }
    }

    /// Runs of words in which `address` has ports for new flows.
    fn segments(&self, address: Ipv4Addr) -> Vec<Segment> {
        let is_own = |block: &Block| {
            self.frontends.get(&block.frontend.into()) == Some(&Address::from(address))
        };
        let is_usable = |block: &Block| block.flags & block_flag::USABLE != 0;
        let mut segments: Vec<Segment> = Vec::new();
        for (index, block) in &self.blocks {
            if !is_own(block) || !is_usable(block) {
                continue;
            }
            let index = *index as u16;
            let first = index / BLOCKS_PER_WORD as u16 * BLOCKS_PER_WORD as u16;
            match segments.last_mut() {
                Some(last) if last.first + last.count + BLOCKS_PER_WORD as u16 > first => {
                    last.count = index - last.first + 1;
                }
                _ => segments.push(Segment { first, count: index - first + 1 }),
            }
        }
        segments
    }

    /// Makes segments fit a policy: the smallest gaps inside one address, with nobody else's ports
    /// in them, are bridged. What lies in a gap is barred.
    fn bridge(&self, segments: &mut Vec<Segment>) {
        // A segment ends on a block of its address; it may start on a place that is not held.
        let frontend = |segment: &Segment| {
            let last = segment.first + segment.count - 1;
            self.blocks.get(&last.into()).map(|block| block.frontend)
        };
        let gap = |pair: &[Segment]| {
            let (from, until) = (pair[0].first + pair[0].count, pair[1].first);
            let own = frontend(&pair[0]);
            if own != frontend(&pair[1]) || until < from {
                return None;
            }
            let mut between = self.blocks.range(u32::from(from)..u32::from(until));
            let is_free = !between.any(|(_, block)| {
                Some(block.frontend) != own && block.flags & block_flag::USABLE != 0
            });
            is_free.then_some(until - from)
        };
        while segments.len() > SEGMENTS_MAX {
            let gaps = segments.windows(2).map(gap).enumerate();
            let smallest = gaps.filter_map(|(index, gap)| Some((gap?, index))).min();
            let Some((_, index)) = smallest else { break };
            let next = segments.remove(index + 1);
            segments[index].count = next.first + next.count - segments[index].first;
        }
    }

    fn place_services(
        &mut self,
        objects: &Objects,
        node: &str,
        rules: BTreeMap<RuleKey<Address>, PublicRule>,
        present: &AgentTables,
    ) {
        let kube_proxy = objects.cluster().last_hop == LastHop::KubeProxy;
        let run = |service: &Service| {
            let rows = (service.first..service.first + service.count)
                .map(|index| present.endpoints.get(&index).copied().unwrap_or_default())
                .collect();
            (service.first, rows)
        };
        let mut runs = Runs::new(present.services.values().map(run), ENDPOINTS_MAX);
        for (key, rule) in rules {
            let endpoints: Vec<Endpoint<Address>> = rule
                .backends
                .iter()
                .filter(|backend| backend.node == node)
                .map(|backend| Endpoint {
                    address: Address::from(backend.address),
                    port: backend.port.into(),
                    reserved: [0; 2],
                })
                .collect();
            let count = endpoints.len() as u32;
            if count == 0 && !kube_proxy {
                continue;
            }
            let Some(first) = runs.place(endpoints) else { continue };
            let mut flags = 0;
            if let Some(sources) = rule.allowed_sources {
                flags |= rule_flag::RESTRICTED;
                let room =
                    (ALLOWED_SOURCES_MAX as usize).saturating_sub(self.allowed_sources.len());
                let sources = sources.into_iter().map(|net| (key, net.trunc()));
                self.allowed_sources.extend(sources.take(room));
            }
            if rule.client_affinity {
                flags |= rule_flag::CLIENT_AFFINITY;
            }
            if rule.tcp_reset {
                flags |= rule_flag::TCP_RESET;
            }
            let idle = Ticks::from_seconds(rule.idle_minutes * 60).0;
            self.services.insert(key, Service { first, count, idle, flags });
        }
        self.endpoints = runs.rows();
    }

    /// Gives the node's pods allowances, and their namespaces where those have limits. Who has a
    /// row keeps it.
    fn place_quotas(&mut self, objects: &Objects, node: &str, present: &AgentTables) {
        let Quotas { flows_per_pod, flows_per_namespace } = objects.cluster().quotas;
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
        enum Owner<'a> {
            Pod(Address),
            Namespace(&'a str),
        }
        let pods: Vec<(Address, &str)> = objects
            .pods
            .values()
            .filter(|pod| pod.spec.node_name.as_deref() == Some(node))
            .filter_map(|pod| {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
                Some((Address::from(pod.own_address()?), namespace))
            })
            .take(QUOTAS_MAX as usize)
            .collect();
        let mut old = BTreeMap::new();
        for (address, namespace) in &pods {
            let Some(quota) = present.quotas.get(address) else { continue };
            let rows =
                [(Owner::Pod(*address), quota.pod), (Owner::Namespace(namespace), quota.namespace)];
            old.extend(rows.into_iter().filter(|(_, row)| (1..INBOUND_ALLOWANCE).contains(row)));
        }
        let wanted = pods.iter().flat_map(|(address, namespace)| {
            let namespace = flows_per_namespace.map(|_| Owner::Namespace(namespace));
            [Owner::Pod(*address)].into_iter().chain(namespace)
        });
        let rows = places(&old, wanted, 1, INBOUND_ALLOWANCE);
        for (address, namespace) in &pods {
            let row = |owner| rows.get(&owner).copied().unwrap_or(0);
            let quota = Quota {
                pod: row(Owner::Pod(*address)),
                namespace: row(Owner::Namespace(namespace)),
            };
            self.quotas.insert(*address, quota);
        }
        for (owner, row) in &rows {
            let limit = match owner {
                Owner::Pod(_) => flows_per_pod,
                Owner::Namespace(_) => flows_per_namespace,
            };
            self.allowances.insert(*row, limit.map_or(Allowance::DEFAULT, NonZeroU32::get));
        }
    }

    /// The changes that lead from `present` to these tables, in order.
    pub fn edits(&self, present: &AgentTables) -> Vec<AgentEdit> {
        let mut edits = Vec::new();
        // Ports that new flows may no longer take, first of all.
        for (word, was) in &present.open {
            let keep = was & self.open.get(word).copied().unwrap_or(0);
            if keep != *was {
                edits.push(AgentEdit::Open(*word, keep));
            }
        }
        // Whose flows they are, before there are any. What is gone goes when its flows are.
        let pods = changed(&present.pods, &self.pods);
        edits.extend(pods.map(|(address, owner)| AgentEdit::Pod(*address, Some(*owner))));
        edits.extend(self.vips.difference(&present.vips).map(|vip| AgentEdit::Vip(*vip, true)));
        edits.extend(self.muxes.difference(&present.muxes).map(|mux| AgentEdit::Mux(*mux, true)));
        let internal = self.internal.difference(&present.internal);
        edits.extend(internal.map(|net| AgentEdit::Internal(*net, true)));
        let allowed = self.allowed_sources.difference(&present.allowed_sources);
        edits.extend(allowed.map(|(key, net)| AgentEdit::AllowedSource(*key, *net, true)));
        let added = self.private_ranges.difference(&present.private_ranges);
        edits.extend(added.map(|net| AgentEdit::PrivateRange(*net, true)));
        let frontends = changed(&present.frontends, &self.frontends);
        edits.extend(frontends.map(|(index, address)| AgentEdit::Frontend(*index, *address)));
        let blocks = changed(&present.blocks, &self.blocks);
        edits.extend(blocks.map(|(index, block)| AgentEdit::Block(*index, *block)));
        for (word, bits) in &self.open {
            let was = present.open.get(word).copied().unwrap_or(0);
            if bits & !was != 0 {
                edits.push(AgentEdit::Open(*word, *bits));
            }
        }
        let endpoints = changed(&present.endpoints, &self.endpoints);
        edits.extend(endpoints.map(|(index, row)| AgentEdit::Endpoint(*index, *row)));
        let policies = changed(&present.policies, &self.policies);
        edits.extend(policies.map(|(index, policy)| AgentEdit::Policy(*index, *policy)));
        let sources = changed(&present.sources, &self.sources);
        edits.extend(sources.map(|(net, source)| AgentEdit::Source(*net, Some(*source))));
        let services = changed(&present.services, &self.services);
        edits.extend(services.map(|(key, row)| AgentEdit::Service(*key, Some(*row))));
        let allowances = changed(&present.allowances, &self.allowances);
        edits.extend(allowances.map(|(row, limit)| AgentEdit::Allowance(*row, *limit)));
        let quotas = changed(&present.quotas, &self.quotas);
        edits.extend(quotas.map(|(address, quota)| AgentEdit::Quota(*address, Some(*quota))));

        let quotas = gone(&present.quotas, &self.quotas);
        edits.extend(quotas.map(|address| AgentEdit::Quota(*address, None)));
        let allowances = gone(&present.allowances, &self.allowances);
        edits.extend(allowances.map(|row| AgentEdit::Allowance(*row, 0)));

        let services = gone(&present.services, &self.services);
        edits.extend(services.map(|key| AgentEdit::Service(*key, None)));
        let sources = gone(&present.sources, &self.sources);
        edits.extend(sources.map(|net| AgentEdit::Source(*net, None)));
        let policies = gone(&present.policies, &self.policies);
        edits.extend(policies.map(|index| AgentEdit::Policy(*index, Policy::default())));
        let endpoints = gone(&present.endpoints, &self.endpoints);
        edits.extend(endpoints.map(|index| AgentEdit::Endpoint(*index, Endpoint::default())));
        let blocks = gone(&present.blocks, &self.blocks);
        edits.extend(blocks.map(|index| AgentEdit::Block(*index, Block::default())));
        let frontends = gone(&present.frontends, &self.frontends);
        edits.extend(frontends.map(|index| AgentEdit::Frontend(*index, Address::default())));
        let allowed = present.allowed_sources.difference(&self.allowed_sources);
        edits.extend(allowed.map(|(key, net)| AgentEdit::AllowedSource(*key, *net, false)));
        let internal = present.internal.difference(&self.internal);
        edits.extend(internal.map(|net| AgentEdit::Internal(*net, false)));
        let removed = present.private_ranges.difference(&self.private_ranges);
        edits.extend(removed.map(|net| AgentEdit::PrivateRange(*net, false)));
        edits.extend(present.muxes.difference(&self.muxes).map(|mux| AgentEdit::Mux(*mux, false)));
        edits.extend(present.vips.difference(&self.vips).map(|vip| AgentEdit::Vip(*vip, false)));
        edits
    }

    /// Carries out one edit, as the kernel does.
    pub fn apply(&mut self, edit: &AgentEdit) {
        fn put<K: Ord + Clone, V: PartialEq + Default + Clone>(
            map: &mut BTreeMap<K, V>,
            key: &K,
            value: &V,
        ) {
            match *value == V::default() {
                true => drop(map.remove(key)),
                false => drop(map.insert(key.clone(), value.clone())),
            }
        }
        fn set<K: Ord + Clone>(set: &mut BTreeSet<K>, key: &K, present: bool) {
            match present {
                true => set.insert(key.clone()),
                false => set.remove(key),
            };
        }
        match edit {
            AgentEdit::Source(net, Some(source)) => drop(self.sources.insert(*net, *source)),
            AgentEdit::Source(net, None) => drop(self.sources.remove(net)),
            AgentEdit::PrivateRange(net, present) => set(&mut self.private_ranges, net, *present),
            AgentEdit::Policy(index, policy) => put(&mut self.policies, index, policy),
            AgentEdit::Block(index, block) => put(&mut self.blocks, index, block),
            AgentEdit::Open(word, bits) => put(&mut self.open, word, bits),
            AgentEdit::Frontend(index, address) => put(&mut self.frontends, index, address),
            AgentEdit::Vip(vip, present) => set(&mut self.vips, vip, *present),
            AgentEdit::Internal(net, present) => set(&mut self.internal, net, *present),
            AgentEdit::AllowedSource(key, net, present) => {
                set(&mut self.allowed_sources, &(*key, *net), *present);
            }
            AgentEdit::Mux(mux, present) => set(&mut self.muxes, mux, *present),
            AgentEdit::Service(key, Some(row)) => drop(self.services.insert(*key, *row)),
            AgentEdit::Service(key, None) => drop(self.services.remove(key)),
            AgentEdit::Endpoint(index, row) => put(&mut self.endpoints, index, row),
            AgentEdit::Quota(address, Some(row)) => drop(self.quotas.insert(*address, *row)),
            AgentEdit::Quota(address, None) => drop(self.quotas.remove(address)),
            AgentEdit::Allowance(row, limit) => put(&mut self.allowances, row, limit),
            AgentEdit::Pod(address, Some(owner)) => drop(self.pods.insert(*address, *owner)),
            AgentEdit::Pod(address, None) => drop(self.pods.remove(address)),
        }
    }
}

/// Free places of blocks. A word of positions belongs to one address.
#[derive(Default)]
struct FreePlaces {
    /// Places in use.
    taken: BTreeSet<u32>,
    /// Whose each word is.
    words: BTreeMap<u32, u32>,
    /// Free places in each address's own words, the lowest last; made at the first question.
    own: BTreeMap<u32, Vec<u32>>,
    /// Words below are somebody's.
    next_word: u32,
}

impl FreePlaces {
    fn take(&mut self, index: u32, frontend: u32) {
        self.taken.insert(index);
        self.words.entry(index / BLOCKS_PER_WORD).or_insert(frontend);
    }

    /// The lowest free place in a word that is the address's own, else in a word that is nobody's.
    fn next(&mut self, frontend: u32) -> Option<u32> {
        let places = |word: u32| word * BLOCKS_PER_WORD..(word + 1) * BLOCKS_PER_WORD;
        let own = self.own.entry(frontend).or_insert_with(|| {
            let words = self.words.iter().rev().filter(|(_, owner)| **owner == frontend);
            words
                .flat_map(|(word, _)| places(*word).rev())
                .filter(|index| !self.taken.contains(index))
                .collect()
        });
        if own.is_empty() {
            let words = self.next_word..BLOCKS_MAX / BLOCKS_PER_WORD;
            let word = words.into_iter().find(|word| !self.words.contains_key(word))?;
            self.next_word = word + 1;
            self.words.insert(word, frontend);
            own.extend(places(word).rev());
        }
        own.pop()
    }
}
