//! Who holds which SNAT ports: grants, drains, rests and refusals.
//!
//! [`settle`] is the whole decision: from who holds what, who wants what and what has been
//! acknowledged, it says who holds what next. A range belongs to one node at a time: it is free,
//! held ([`Lease`]) or resting ([`Resting`]), and it goes round in that order only:
//!
//! ```text
//!            take           every live mux has it
//!   free ---------> Granted ----------------------> Usable
//!    ^                 |                              |  no longer wanted, or others are short
//!    | 120 s           | not wanted                   v
//!   resting <----------+------------------------- Draining
//!                          no flows left
//! ```
//!
//! Growing takes from the free ports first; when these are used up, nodes that hold more than
//! their share stop using the surplus, and only what they have drained is given to others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use datapath::limits::{BLOCK_PORTS, SNAT_PORT_MAX, SNAT_PORT_MIN};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ports::{Free, subtract};
pub use crate::ports::{PortRange, Settings, TABLE, Tier};

/// A point in time: milliseconds since 1970, as the caller's clock has it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment and `seconds` more.
    pub const fn plus_seconds(self, seconds: u64) -> Millis {
        Millis(self.0 + seconds * 1000)
    }
}

/// How long a released range or address rests before another node gets it.
pub const REST_SECONDS: u64 = 120;
/// How long a new listener waits for the flows on its port.
pub const LISTENER_WAIT_SECONDS: u64 = 60;
/// Ranges that one node may hold for new flows when it is given more.
pub const RANGES_MAX: usize = 64;

/// What a node may do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LeaseState {
    /// It is the node's, but not every mux knows it: no flow may use it yet.
    Granted,
    /// New flows may take its ports.
    Usable,
    /// Flows that it has may go on; new flows take other ports.
    Draining,
}

/// A range that one node holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The ports.
    #[serde(flatten)]
    pub range: PortRange,
    /// Epoch of the order that made it what it is: granted or draining.
    pub epoch: u32,
    /// What the node may do with it.
    pub state: LeaseState,
    /// A draining range is taken at this moment even with flows on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<Millis>,
}

/// A range that nobody holds and that nobody gets before its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resting {
    /// The ports.
    #[serde(flatten)]
    pub range: PortRange,
    /// When it becomes free.
    pub until: Millis,
    /// The node that may still use it, because it was taken with flows on it: it must have read
    /// so first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaits: Option<Awaits>,
}

/// A node that has to read an order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Awaits {
    /// The node.
    pub node: String,
    /// The order.
    pub epoch: u32,
}

/// A part of a draining lease on which no flow is left, as a node reports it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Drained {
    /// The ports.
    #[serde(flatten)]
    pub range: PortRange,
    /// Epoch of the lease that was drained; a report about an earlier order means nothing.
    pub epoch: u32,
}

/// How the ports of a holding lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Aligned powers of two, which can be halved.
    Aligned,
    /// As few runs as possible.
    Runs,
}

/// What a node should hold for one method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Addresses, in the order in which they are filled.
    pub frontends: Vec<Ipv4Addr>,
    /// Ports, over all of them.
    pub ports: u32,
    /// How they lie.
    pub shape: Shape,
}

/// What [`settle`] decides from.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// Epoch of the newest order.
    pub epoch: u32,
    /// What each node holds.
    pub held: BTreeMap<String, Vec<Lease>>,
    /// What nobody holds yet.
    pub resting: Vec<Resting>,
}

/// What is so at this moment.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Which ports there are to hand out.
    pub settings: &'a Settings,
    /// What each existing node should hold; a node that is missing here is gone.
    pub demands: &'a BTreeMap<String, Vec<Demand>>,
    /// Addresses that exist; leases on others end at once.
    pub addresses: &'a BTreeSet<Ipv4Addr>,
    /// Ports with listeners, by address.
    pub listeners: &'a BTreeMap<Ipv4Addr, BTreeSet<u16>>,
    /// What nodes have drained.
    pub drained: &'a BTreeMap<String, Vec<Drained>>,
    /// The order that each node follows.
    pub applied: &'a BTreeMap<String, u32>,
    /// The oldest epoch among muxes that may still receive traffic; none: there is no such mux.
    pub acknowledged: Option<u32>,
    /// The time.
    pub now: Millis,
}

/// What [`settle`] decided.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// The new books; their epoch is higher if anything about leases changed.
    pub books: Books,
    /// Who got less than wanted, and why.
    pub refusals: BTreeMap<String, Refusal>,
    /// Ranges that were taken with flows on them, because a listener waited long enough.
    pub cut: Vec<(String, PortRange)>,
}

/// Why a node holds less than it should.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There are too few ports, whoever waits.
    #[error(
        "node {node}: {held} of {wanted} ports: {nodes} nodes need {needed} ports, and \
         {frontends} frontend(s) x {ports_per_frontend} ports - {listener_ports} at listeners = \
         {available}"
    )]
    NoRoom {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
        /// Nodes that share the frontends.
        nodes: u32,
        /// Ports that they need together.
        needed: u64,
        /// Frontends that they share.
        frontends: u32,
        /// Ports of one frontend.
        ports_per_frontend: u32,
        /// Ports in blocks with listeners.
        listener_ports: u32,
        /// Ports that there are.
        available: u64,
    },
    /// There are enough ports, but others have flows on them or they rest.
    #[error(
        "node {node}: {held} of {wanted} ports: waits for {draining} ports that other nodes drain \
         and {resting} that rest"
    )]
    Waiting {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
        /// Ports that other nodes drain.
        draining: u32,
        /// Ports that rest.
        resting: u32,
    },
    /// Free ports lie in too many pieces.
    #[error("node {node}: {held} of {wanted} ports: a node holds at most {RANGES_MAX} ranges")]
    TooManyRanges {
        /// The node.
        node: String,
        /// Ports that it should hold.
        wanted: u32,
        /// Ports that it holds.
        held: u32,
    },
}

/// Decides who holds which ports next. The same books in the same situation come out unchanged,
/// once what was decided has been carried out.
pub fn settle(before: &Books, situation: &Situation<'_>) -> Settlement {
    let mut step = Step {
        next_epoch: before.epoch.saturating_add(1),
        books: before.clone(),
        situation,
        cut: Vec::new(),
        lost: BTreeSet::new(),
    };
    step.end_rests();
    step.end_leases_without_owner_or_address();
    step.end_drained();
    step.begin_use();
    step.clear_listeners();
    step.drop_unwanted();
    let refusals = step.meet_demands();
    for leases in step.books.held.values_mut() {
        leases.sort();
    }
    step.books.held.retain(|_, leases| !leases.is_empty());
    step.books.resting.sort();
    if step.books.held != before.held {
        step.books.epoch = step.next_epoch;
    }
    Settlement { books: step.books, refusals, cut: step.cut }
}

struct Step<'a> {
    next_epoch: u32,
    books: Books,
    situation: &'a Situation<'a>,
    cut: Vec<(String, PortRange)>,
    /// Nodes that could not take more pieces.
    lost: BTreeSet<String>,
}

impl Step<'_> {
    fn end_rests(&mut self) {
        let situation = self.situation;
        self.books.resting.retain(|resting| {
            let is_awaited = resting.awaits.as_ref().is_some_and(|awaits| {
                let applied = situation.applied.get(&awaits.node).copied().unwrap_or(0);
                situation.demands.contains_key(&awaits.node) && applied < awaits.epoch
            });
            resting.until > situation.now || is_awaited
        });
    }

    /// A range that its node does not use any more.
    fn rest(&mut self, range: PortRange) {
        let until = self.situation.now.plus_seconds(REST_SECONDS);
        self.books.resting.push(Resting { range, until, awaits: None });
    }

    /// A range that its node uses until it reads that it is taken.
    fn rest_taken(&mut self, node: String, range: PortRange) {
        let until = self.situation.now.plus_seconds(REST_SECONDS);
        let awaits = Some(Awaits { node, epoch: self.next_epoch });
        self.books.resting.push(Resting { range, until, awaits });
    }

    fn end_leases_without_owner_or_address(&mut self) {
        let mut ended = Vec::new();
        for (node, leases) in &mut self.books.held {
            let node_exists = self.situation.demands.contains_key(node);
            leases.retain(|lease| {
                let stays = node_exists && self.situation.addresses.contains(&lease.range.address);
                if !stays {
                    ended.push((node.clone(), lease.range));
                }
                stays
            });
        }
        ended.into_iter().for_each(|(node, range)| self.rest_taken(node, range));
    }

    fn end_drained(&mut self) {
        let mut ended = Vec::new();
        let mut cut = Vec::new();
        for (node, leases) in &mut self.books.held {
            let reports = self.situation.drained.get(node).map_or(&[][..], Vec::as_slice);
            let mut kept = Vec::with_capacity(leases.len());
            for lease in leases.drain(..) {
                if lease.state != LeaseState::Draining {
                    kept.push(lease);
                    continue;
                }
                let mut left = vec![lease.range];
                for report in reports.iter().filter(|report| report.epoch == lease.epoch) {
                    left = left.iter().flat_map(|part| subtract(*part, report.range)).collect();
                }
                // What is left of it is drained, cut or kept.
                let until = lease.drain_until;
                let is_cut = until.is_some_and(|until| until <= self.situation.now);
                let gone = left.iter().fold(vec![lease.range], |parts: Vec<PortRange>, stays| {
                    parts.iter().flat_map(|part| subtract(*part, *stays)).collect()
                });
                ended.extend(gone);
                match is_cut {
                    true => cut.extend(left.into_iter().map(|range| (node.clone(), range))),
                    false => {
                        kept.extend(left.into_iter().map(|range| Lease { range, ..lease.clone() }));
                    }
                }
            }
            *leases = kept;
        }
        ended.into_iter().for_each(|range| self.rest(range));
        cut.iter().for_each(|(node, range)| self.rest_taken(node.clone(), *range));
        self.cut = cut;
    }

    fn begin_use(&mut self) {
        let acknowledged = self.situation.acknowledged.unwrap_or(u32::MAX);
        for lease in self.books.held.values_mut().flatten() {
            if lease.state == LeaseState::Granted && lease.epoch <= acknowledged {
                lease.state = LeaseState::Usable;
            }
        }
    }

    /// Takes `range` out of the use of new flows. What was never usable ends at once.
    fn drain(&mut self, node: &str, range: PortRange, drain_until: Option<Millis>) {
        let epoch = self.next_epoch;
        let mut ended = Vec::new();
        if let Some(leases) = self.books.held.get_mut(node) {
            let mut kept = Vec::with_capacity(leases.len() + 2);
            for lease in leases.drain(..) {
                let Some(part) = lease.range.intersection(range) else {
                    kept.push(lease);
                    continue;
                };
                match lease.state {
                    LeaseState::Granted => ended.push(part),
                    LeaseState::Usable => kept.push(Lease {
                        range: part,
                        epoch,
                        state: LeaseState::Draining,
                        drain_until,
                    }),
                    LeaseState::Draining => {
                        let drain_until = match (lease.drain_until, drain_until) {
                            (Some(earlier), Some(later)) => Some(earlier.min(later)),
                            (one, other) => one.or(other),
                        };
                        kept.push(Lease { range: part, drain_until, ..lease.clone() });
                    }
                }
                kept.extend(
                    subtract(lease.range, part)
                        .into_iter()
                        .map(|range| Lease { range, ..lease.clone() }),
                );
            }
            *leases = kept;
        }
        ended.into_iter().for_each(|range| self.rest(range));
    }

    /// Ports with listeners leave the holdings, whole blocks at a time.
    fn clear_listeners(&mut self) {
        let until = self.situation.now.plus_seconds(LISTENER_WAIT_SECONDS);
        let mut to_drain = Vec::new();
        for (node, leases) in &self.books.held {
            for lease in leases {
                let blocks = listener_blocks(self.situation.listeners, lease.range.address);
                for block in blocks {
                    let overlap = lease.range.intersection(block);
                    let waits = lease.state == LeaseState::Draining && lease.drain_until.is_some();
                    if let (Some(part), false) = (overlap, waits) {
                        to_drain.push((node.clone(), part));
                    }
                }
            }
        }
        for (node, part) in to_drain {
            self.drain(&node, part, Some(until));
        }
    }

    /// Leases on addresses that the node's methods do not use drain.
    fn drop_unwanted(&mut self) {
        let mut to_drain = Vec::new();
        for (node, leases) in &self.books.held {
            let demands = self.situation.demands.get(node).map_or(&[][..], Vec::as_slice);
            for lease in leases.iter().filter(|lease| lease.state != LeaseState::Draining) {
                let wanted =
                    demands.iter().any(|demand| demand.frontends.contains(&lease.range.address));
                if !wanted {
                    to_drain.push((node.clone(), lease.range));
                }
            }
        }
        for (node, range) in to_drain {
            self.drain(&node, range, None);
        }
    }

    /// Ports of `node` that count for `demand`.
    fn held(&self, node: &str, demand: &Demand) -> u32 {
        self.books.held.get(node).map_or(0, |leases| {
            leases
                .iter()
                .filter(|lease| lease.state != LeaseState::Draining)
                .filter(|lease| demand.frontends.contains(&lease.range.address))
                .map(|lease| lease.range.ports())
                .sum()
        })
    }

    fn meet_demands(&mut self) -> BTreeMap<String, Refusal> {
        let demands = self.situation.demands;
        let mut short: Vec<(u32, &String, &Demand)> = demands
            .iter()
            .flat_map(|(node, demands)| demands.iter().map(move |demand| (node, demand)))
            .map(|(node, demand)| (self.held(node, demand), node, demand))
            .filter(|(held, _, demand)| *held < demand.ports)
            .collect();
        if short.is_empty() {
            return BTreeMap::new();
        }
        // Who holds least is served first: newcomers before nodes that grow.
        short.sort_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
        let mut free = self.free_ports();
        for (_, node, demand) in &short {
            self.take_back_drain(node, demand);
            self.take(node, demand, &mut free);
        }
        let still_short: Vec<(u32, &String, &Demand)> = short
            .into_iter()
            .map(|(_, node, demand)| (self.held(node, demand), node, demand))
            .filter(|(held, _, demand)| *held < demand.ports)
            .collect();
        self.squeeze(&still_short);
        still_short
            .iter()
            .map(|(held, node, demand)| ((*node).clone(), self.refusal(node, demand, *held)))
            .collect()
    }

    fn free_ports(&self) -> BTreeMap<Ipv4Addr, Free> {
        let mut taken: BTreeMap<Ipv4Addr, Vec<PortRange>> = BTreeMap::new();
        let held = self.books.held.values().flatten().map(|lease| lease.range);
        let resting = self.books.resting.iter().map(|resting| resting.range);
        for range in held.chain(resting) {
            taken.entry(range.address).or_default().push(range);
        }
        self.situation
            .addresses
            .iter()
            .map(|address| {
                let mut taken = taken.remove(address).unwrap_or_default();
                taken.extend(listener_blocks(self.situation.listeners, *address));
                (*address, Free::between(*address, self.situation.settings, taken))
            })
            .collect()
    }

    /// A node that is short uses its own draining ranges again before it gets others.
    fn take_back_drain(&mut self, node: &str, demand: &Demand) {
        let mut missing = demand.ports.saturating_sub(self.held(node, demand));
        let (listeners, epoch) = (self.situation.listeners, self.next_epoch);
        let Some(leases) = self.books.held.get_mut(node) else { return };
        for lease in leases {
            let at_listener = lease.drain_until.is_some()
                || listener_blocks(listeners, lease.range.address)
                    .any(|block| block.intersection(lease.range).is_some());
            if lease.state == LeaseState::Draining
                && !at_listener
                && demand.frontends.contains(&lease.range.address)
                && lease.range.ports() <= missing
            {
                missing -= lease.range.ports();
                lease.state = LeaseState::Granted;
                lease.epoch = epoch;
            }
        }
    }

    fn take(&mut self, node: &str, demand: &Demand, free: &mut BTreeMap<Ipv4Addr, Free>) {
        let mut missing = demand.ports.saturating_sub(self.held(node, demand));
        let leases = self.books.held.entry(node.to_owned()).or_default();
        // What drains falls into pieces and goes; it takes no room from what is to stay.
        let staying = leases.iter().filter(|lease| lease.state != LeaseState::Draining).count();
        let mut room = RANGES_MAX.saturating_sub(staying);
        // The first frontend that has room for all of it, else what there is, in order.
        let whole = demand
            .frontends
            .iter()
            .find(|address| free.get(*address).is_some_and(|free| free.ports() >= missing));
        let order: Vec<Ipv4Addr> =
            whole.map_or_else(|| demand.frontends.clone(), |address| vec![*address]);
        for address in order {
            let Some(free) = free.get_mut(&address) else { continue };
            let pieces = match demand.shape {
                Shape::Aligned => free.take_aligned(missing, room),
                Shape::Runs => free.take_runs(missing, room),
            };
            for range in pieces {
                missing -= range.ports();
                room -= 1;
                leases.push(Lease {
                    range,
                    epoch: self.next_epoch,
                    state: LeaseState::Granted,
                    drain_until: None,
                });
            }
        }
        if missing > 0 && room == 0 {
            self.lost.insert(node.to_owned());
        }
    }

    /// Makes nodes that hold more than they should drain enough for those that are short.
    fn squeeze(&mut self, short: &[(u32, &String, &Demand)]) {
        let mut missing: BTreeMap<&[Ipv4Addr], (u32, &Demand)> = BTreeMap::new();
        for (held, _, demand) in short {
            missing.entry(&demand.frontends).or_insert((0, demand)).0 += demand.ports - held;
        }
        for (mut missing, demand) in missing.into_values() {
            let (draining, resting) = self.underway(demand);
            missing = missing.saturating_sub(draining + resting);
            while missing > 0 {
                let Some((node, range)) = self.surplus(demand, missing) else { break };
                missing = missing.saturating_sub(range.ports());
                self.drain(&node, range, None);
            }
        }
    }

    /// Ports on the demand's frontends that drain or rest, listener blocks left out.
    fn underway(&self, demand: &Demand) -> (u32, u32) {
        let count = |range: &PortRange| {
            let listeners: u32 = listener_blocks(self.situation.listeners, range.address)
                .filter_map(|block| block.intersection(*range))
                .map(|part| part.ports())
                .sum();
            range.ports() - listeners
        };
        let on_demand = |range: &PortRange| demand.frontends.contains(&range.address);
        let draining = self
            .books
            .held
            .values()
            .flatten()
            .filter(|lease| lease.state == LeaseState::Draining && on_demand(&lease.range))
            .map(|lease| count(&lease.range))
            .sum();
        let resting = self
            .books
            .resting
            .iter()
            .filter(|resting| on_demand(&resting.range))
            .map(|resting| count(&resting.range))
            .sum();
        (draining, resting)
    }

    /// The part of a holding that its node can best do without, on one of `demand`'s frontends.
    fn surplus(&self, demand: &Demand, missing: u32) -> Option<(String, PortRange)> {
        let mut best: Option<(u32, &String, PortRange)> = None;
        for (node, leases) in &self.books.held {
            let own = self.situation.demands.get(node).map_or(&[][..], Vec::as_slice);
            for lease in leases.iter().filter(|lease| lease.state != LeaseState::Draining) {
                if !demand.frontends.contains(&lease.range.address) {
                    continue;
                }
                let surplus = own
                    .iter()
                    .filter(|own| own.frontends.contains(&lease.range.address))
                    .map(|own| self.held(node, own).saturating_sub(own.ports))
                    .min()
                    .unwrap_or(0);
                if surplus > best.as_ref().map_or(0, |best| best.0) {
                    let ports = surplus.min(lease.range.ports()).min(missing.next_power_of_two());
                    best = Some((surplus, node, lease.range.top(ports)));
                }
            }
        }
        best.map(|(_, node, range)| (node.clone(), range))
    }

    fn refusal(&self, node: &str, demand: &Demand, held: u32) -> Refusal {
        let (node, wanted) = (node.to_owned(), demand.ports);
        if self.lost.contains(&node) {
            return Refusal::TooManyRanges { node, wanted, held };
        }
        let sharing: Vec<u32> = self
            .situation
            .demands
            .values()
            .flatten()
            .filter(|other| other.frontends.iter().any(|one| demand.frontends.contains(one)))
            .map(|other| other.ports)
            .collect();
        let needed = sharing.iter().map(|ports| u64::from(*ports)).sum();
        let listener_ports = demand
            .frontends
            .iter()
            .flat_map(|address| listener_blocks(self.situation.listeners, *address))
            .filter_map(|block| block.intersection(self.situation.settings.whole(block.address)))
            .map(|part| part.ports())
            .sum();
        let ports_per_frontend = self.situation.settings.ports();
        let frontends = demand.frontends.len() as u32;
        let available = (u64::from(frontends) * u64::from(ports_per_frontend))
            .saturating_sub(u64::from(listener_ports));
        if needed > available {
            return Refusal::NoRoom {
                node,
                wanted,
                held,
                nodes: sharing.len() as u32,
                needed,
                frontends,
                ports_per_frontend,
                listener_ports,
                available,
            };
        }
        let (draining, resting) = self.underway(demand);
        Refusal::Waiting { node, wanted, held, draining, resting }
    }
}

/// Blocks of `address` that have listeners, in order.
fn listener_blocks(
    listeners: &BTreeMap<Ipv4Addr, BTreeSet<u16>>,
    address: Ipv4Addr,
) -> impl Iterator<Item = PortRange> + '_ {
    let block = BLOCK_PORTS as u16;
    let blocks: BTreeSet<u16> =
        listeners.get(&address).into_iter().flatten().map(|port| port / block * block).collect();
    blocks.into_iter().map(move |start| PortRange { address, start, length: block })
}

/// Ports of each node by the table of pool sizes: the table's figure for each frontend, at most
/// its largest.
pub fn table_ports(settings: &Settings, pool_size: u32, frontends: u32) -> u32 {
    let largest = settings.tiers.first().map_or(0, |tier| tier.ports);
    let figure = settings
        .tiers
        .iter()
        .find(|tier| pool_size <= tier.nodes)
        .or(settings.tiers.last())
        .map_or(0, |tier| tier.ports);
    (figure * frontends).min(largest)
}

/// Why a number of ports for each node cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PortsRefused {
    /// Ports come in blocks.
    #[error(
        "outbound rule {rule}: allocatedOutboundPorts {ports} is not a multiple of {BLOCK_PORTS}"
    )]
    NotMultipleOfEight {
        /// The rule.
        rule: String,
        /// What it asks for.
        ports: u32,
    },
    /// One node never gets more than one address has.
    #[error(
        "outbound rule {rule}: allocatedOutboundPorts {ports} > {most}, all ports of an address"
    )]
    MoreThanOneAddress {
        /// The rule.
        rule: String,
        /// What it asks for.
        ports: u32,
        /// Ports of an address.
        most: u32,
    },
    /// All nodes together want more than there is.
    #[error(
        "outbound rule {rule}: {nodes} nodes x {ports} ports = {needed} > {frontends} frontend(s) \
         x {ports_per_frontend} ports - {listener_ports} at listeners = {available}"
    )]
    ExceedsAvailable {
        /// The rule.
        rule: String,
        /// Members of its pool.
        nodes: u32,
        /// What it asks for.
        ports: u32,
        /// What all members need.
        needed: u64,
        /// Its frontends.
        frontends: u32,
        /// Ports of each.
        ports_per_frontend: u32,
        /// Ports in blocks with listeners.
        listener_ports: u32,
        /// What there is.
        available: u64,
    },
}

/// Checks a manual allocation: a multiple of eight, not above one address, enough for all nodes.
pub fn check_manual(
    rule: &str,
    ports: u32,
    nodes: u32,
    frontends: &[Ipv4Addr],
    listeners: &BTreeMap<Ipv4Addr, BTreeSet<u16>>,
    settings: &Settings,
) -> Result<(), PortsRefused> {
    let rule = rule.to_owned();
    if !ports.is_multiple_of(BLOCK_PORTS) {
        return Err(PortsRefused::NotMultipleOfEight { rule, ports });
    }
    let most = u32::from(SNAT_PORT_MAX - SNAT_PORT_MIN) + 1;
    if ports > most {
        return Err(PortsRefused::MoreThanOneAddress { rule, ports, most });
    }
    let listener_ports: u32 = frontends
        .iter()
        .flat_map(|address| listener_blocks(listeners, *address))
        .filter_map(|block| block.intersection(settings.whole(block.address)))
        .map(|part| part.ports())
        .sum();
    let ports_per_frontend = settings.ports();
    let available = (u64::from(ports_per_frontend) * frontends.len() as u64)
        .saturating_sub(u64::from(listener_ports));
    let needed = u64::from(nodes) * u64::from(ports);
    if needed > available {
        return Err(PortsRefused::ExceedsAvailable {
            rule,
            nodes,
            ports,
            needed,
            frontends: frontends.len() as u32,
            ports_per_frontend,
            listener_ports,
            available,
        });
    }
    Ok(())
}
