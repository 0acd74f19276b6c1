//! Who holds which SNAT ports: grants, drains, rests and refusals.
//!
//! [`settle`] is the whole decision: from who holds what, who wants what and what has been
//! acknowledged, it says who holds what next. A range belongs to one node at a time: it is free,
//! held ([`Lease`]) or resting ([`Resting`]), and it goes round in that order only:
//!
//! ```text
//!            take           every live mux has it
//!   free ---------> Granted ----------------------> Usable <----------------+
//!    ^                 |                              |  no longer wanted,   | wanted again
//!    | 120 s           | not wanted                   v  or others are short |
//!   resting <----------+------------------------- Draining -----------------+
//!    ^                     no flows left              |
//!    |                                                | a listener has waited, and
//!    |                     no flows left              v the node knows that its port is taken
//!    +--------------------------------------------- Sharing
//! ```
//!
//! Growing takes from the free ports first; when these are used up, nodes that hold more than
//! their share stop using the surplus, and only what they have drained is given to others.
//!
//! A new listener inside a lease has the block of eight around it drained. What it has waited
//! [`LISTENER_WAIT_SECONDS`] for is taken from the node, that one port alone, and given to the
//! rules once the node has read so: no port has two users. Flows on the block's other ports go on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use datapath::limits::BLOCK_PORTS;
use serde::{Deserialize, Serialize};

use crate::allocation::listener_blocks;
pub use crate::allocation::{Refusal, Supply, table_ports};
use crate::ports::{Free, subtract};
pub use crate::ports::{PortRange, RANGES_MAX, Settings, Shape, TABLE, Tier};

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

/// What a node may do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LeaseState {
    /// It is the node's, but not every mux knows it: no flow may use it yet.
    Granted,
    /// New flows may take its ports.
    Usable,
    /// Flows that it has may go on; new flows take other ports.
    Draining,
    /// As [`Draining`](LeaseState::Draining), but some of its ports are listeners by now
    /// ([`Lease::live`]): muxes send these by the rules, and all others of the block to the node.
    Sharing,
}

/// A range that one node holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The ports.
    #[serde(flatten)]
    pub range: PortRange,
    /// Epoch of the order that made it what it is: granted, draining, or without some ports.
    pub epoch: u32,
    /// What the node may do with it.
    pub state: LeaseState,
    /// A listener in this block waits until this moment for flows to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<Millis>,
    /// Ports that listeners have taken: the node ends the flows that it has on them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub taken: BTreeSet<u16>,
    /// Those of them that muxes send by the rules, because the node has read that they are taken.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub live: BTreeSet<u16>,
}

impl Lease {
    /// A lease that no listener has to do with.
    pub fn new(range: PortRange, epoch: u32, state: LeaseState) -> Lease {
        let (taken, live) = (BTreeSet::new(), BTreeSet::new());
        Lease { range, epoch, state, drain_until: None, taken, live }
    }

    /// Whether it has flows and gets no new ones.
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, LeaseState::Draining | LeaseState::Sharing)
    }

    /// Whether `port` is still the node's, so that no rule may have it.
    pub fn withholds(&self, address: Ipv4Addr, port: u16) -> bool {
        self.range.address == address && self.range.contains(port) && !self.live.contains(&port)
    }
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

/// What a node should hold for one method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Addresses, in the order in which they are filled.
    pub frontends: Vec<Ipv4Addr>,
    /// Ports, over all of them.
    pub ports: u32,
    /// How they lie.
    pub shape: Shape,
    /// Whether more than that is given back at once, not only when others are short.
    pub gives_back: bool,
}

impl Demand {
    /// Ports, in whole blocks.
    fn ports(&self) -> u32 {
        self.ports / BLOCK_PORTS * BLOCK_PORTS
    }
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
    /// Nodes that have said nothing for long: a listener does not wait for them to read orders.
    pub silent: &'a BTreeSet<String>,
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
    /// Ports that were taken from nodes, because a listener waited long enough.
    pub taken: Vec<(String, Ipv4Addr, u16)>,
}

/// Decides who holds which ports next. The same books in the same situation come out unchanged,
/// once what was decided has been carried out.
pub fn settle(before: &Books, situation: &Situation<'_>) -> Settlement {
    let mut step = Step {
        next_epoch: before.epoch.saturating_add(1),
        books: before.clone(),
        situation,
        listener_blocks: listener_blocks(situation.listeners),
        taken: Vec::new(),
        lost: BTreeSet::new(),
    };
    step.end_rests();
    step.end_double_grants();
    step.end_leases_without_owner_or_address();
    step.end_drained();
    step.share_with_listeners();
    step.begin_use();
    step.clear_listeners();
    step.drop_unwanted();
    step.give_back();
    let refusals = step.meet_demands();
    for leases in step.books.held.values_mut() {
        leases.sort();
    }
    step.books.held.retain(|_, leases| !leases.is_empty());
    step.books.resting = merged(step.books.resting);
    if step.books.held != before.held {
        step.books.epoch = step.next_epoch;
    }
    Settlement { books: step.books, refusals, taken: step.taken }
}

/// Rests that follow each other and end together, as one.
fn merged(mut resting: Vec<Resting>) -> Vec<Resting> {
    resting.sort();
    let mut merged: Vec<Resting> = Vec::with_capacity(resting.len());
    for next in resting {
        match merged.last_mut() {
            Some(last)
                if last.range.address == next.range.address
                    && last.range.end() == u32::from(next.range.start)
                    && (last.until, &last.awaits) == (next.until, &next.awaits) =>
            {
                last.range.length += next.range.length;
            }
            _ => merged.push(next),
        }
    }
    merged
}

struct Step<'a> {
    next_epoch: u32,
    books: Books,
    situation: &'a Situation<'a>,
    listener_blocks: BTreeMap<Ipv4Addr, Vec<PortRange>>,
    taken: Vec<(String, Ipv4Addr, u16)>,
    /// Nodes that could not take more pieces.
    lost: BTreeSet<String>,
}

impl<'a> Step<'a> {
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

    /// A controller that was held up in the middle of its writes may have granted what another
    /// one has given away meanwhile. Nobody uses a grant before a later look, which is this one:
    /// it goes, and what is older or in use stays.
    fn end_double_grants(&mut self) {
        let resting = self.books.resting.iter().map(|resting| resting.range);
        let mut all: Vec<PortRange> = resting.collect();
        all.extend(self.books.held.values().flatten().map(|lease| lease.range));
        all.sort_unstable();
        if all.windows(2).all(|pair| pair[0].intersection(pair[1]).is_none()) {
            return;
        }
        let is_grant = |lease: &&Lease| lease.state == LeaseState::Granted;
        let mut solid: Vec<PortRange> =
            self.books.resting.iter().map(|resting| resting.range).collect();
        let mut grants = Vec::new();
        for (node, leases) in &mut self.books.held {
            solid.extend(leases.iter().filter(|one| !is_grant(one)).map(|lease| lease.range));
            grants.extend(leases.iter().filter(is_grant).map(|one| (node.clone(), one.clone())));
            leases.retain(|lease| !is_grant(&lease));
        }
        grants.sort_by(|one, other| (one.1.epoch, &one.0).cmp(&(other.1.epoch, &other.0)));
        for (node, lease) in grants {
            let mut left = vec![lease.range];
            for range in &solid {
                left = left.into_iter().flat_map(|part| subtract(part, *range)).collect();
            }
            solid.extend(&left);
            let left = left.into_iter().map(|range| Lease { range, ..lease.clone() });
            self.books.held.entry(node).or_default().extend(left);
        }
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
        for (node, leases) in &mut self.books.held {
            let Some(reports) = self.situation.drained.get(node) else { continue };
            let mut kept = Vec::with_capacity(leases.len());
            for lease in leases.drain(..) {
                if !lease.is_leaving() {
                    kept.push(lease);
                    continue;
                }
                let mut left = vec![lease.range];
                for report in reports.iter().filter(|report| report.epoch == lease.epoch) {
                    left = left.into_iter().flat_map(|part| subtract(part, report.range)).collect();
                }
                let gone = left.iter().fold(vec![lease.range], |parts: Vec<PortRange>, stays| {
                    parts.into_iter().flat_map(|part| subtract(part, *stays)).collect()
                });
                ended.extend(gone);
                kept.extend(left.into_iter().map(|range| Lease { range, ..lease.clone() }));
            }
            *leases = kept;
        }
        ended.into_iter().for_each(|range| self.rest(range));
    }

    /// Listeners whose wait is over take their ports; the rules have them once the node knows.
    fn share_with_listeners(&mut self) {
        for (node, leases) in &mut self.books.held {
            let applied = self.situation.applied.get(node).copied().unwrap_or(0);
            for lease in leases.iter_mut().filter(|lease| lease.is_leaving()) {
                if let Some(until) = lease.drain_until {
                    let listening = listening(self.situation, lease.range);
                    let waiting: Vec<u16> = listening.difference(&lease.taken).copied().collect();
                    if waiting.is_empty() {
                        // Whoever it waited for has gone.
                        lease.drain_until = None;
                    } else if until <= self.situation.now {
                        lease.drain_until = None;
                        lease.epoch = self.next_epoch;
                        lease.taken.extend(&waiting);
                        let address = lease.range.address;
                        self.taken
                            .extend(waiting.into_iter().map(|port| (node.clone(), address, port)));
                    }
                }
                let has_read = applied >= lease.epoch || self.situation.silent.contains(node);
                if lease.live != lease.taken && has_read {
                    lease.live.clone_from(&lease.taken);
                    lease.state = LeaseState::Sharing;
                }
            }
        }
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
                        ..lease.clone()
                    }),
                    LeaseState::Draining | LeaseState::Sharing => {
                        let drain_until = lease.drain_until.or(drain_until);
                        kept.push(Lease { range: part, drain_until, ..lease.clone() });
                    }
                }
                let around = subtract(lease.range, part).into_iter();
                kept.extend(around.map(|range| Lease { range, ..lease.clone() }));
            }
            *leases = kept;
        }
        ended.into_iter().for_each(|range| self.rest(range));
    }

    /// Blocks with listeners leave the holdings.
    fn clear_listeners(&mut self) {
        let until = self.situation.now.plus_seconds(LISTENER_WAIT_SECONDS);
        let mut to_drain = Vec::new();
        for (node, leases) in &self.books.held {
            for lease in leases.iter().filter(|lease| lease.drain_until.is_none()) {
                let Some(blocks) = self.listener_blocks.get(&lease.range.address) else { continue };
                for part in blocks.iter().filter_map(|block| lease.range.intersection(*block)) {
                    if !listening(self.situation, part).is_subset(&lease.taken) {
                        to_drain.push((node.clone(), part));
                    }
                }
            }
        }
        for (node, part) in to_drain {
            self.drain(&node, part, Some(until));
        }
    }

    /// Leases on addresses that the node's methods do not use drain, and those on ports that are
    /// not handed out any more.
    fn drop_unwanted(&mut self) {
        let mut to_drain = Vec::new();
        for (node, leases) in &self.books.held {
            let demands = self.situation.demands.get(node).map_or(&[][..], Vec::as_slice);
            for lease in leases.iter().filter(|lease| !lease.is_leaving()) {
                let address = lease.range.address;
                let wanted = demands.iter().any(|demand| demand.frontends.contains(&address));
                if !wanted || !self.situation.settings.has(lease.range) {
                    to_drain.push((node.clone(), lease.range));
                }
            }
        }
        for (node, range) in to_drain {
            self.drain(&node, range, None);
        }
    }

    /// Nodes that hold ports on demand drain what they need no more.
    fn give_back(&mut self) {
        let situation = self.situation;
        for (node, demands) in situation.demands {
            for demand in demands.iter().filter(|demand| demand.gives_back) {
                // BOUND: each turn drains a part of what is too much.
                while let Some(range) = self.spare(node, demand, u32::MAX) {
                    self.drain(node, range, None);
                }
            }
        }
    }

    /// A part of what `node` can do without on `demand`'s frontends, of about `ports` ports.
    fn spare(&self, node: &str, demand: &Demand, ports: u32) -> Option<PortRange> {
        let surplus = self.surplus(node, demand);
        let leases = self.books.held.get(node)?.iter();
        let usable = leases
            .filter(|lease| !lease.is_leaving() && demand.frontends.contains(&lease.range.address));
        // What is not in use yet costs nobody anything.
        let range = usable.min_by_key(|lease| lease.state)?.range;
        let ports = surplus.min(range.ports()).min(ports);
        (ports > 0).then(|| match demand.shape {
            Shape::Aligned => range.top_aligned(ports),
            Shape::Runs => range.top(ports),
        })
    }

    /// Ports of `node` that count for `demand`.
    fn held(&self, node: &str, demand: &Demand) -> u32 {
        self.books.held.get(node).map_or(0, |leases| {
            leases
                .iter()
                .filter(|lease| !lease.is_leaving())
                .filter(|lease| demand.frontends.contains(&lease.range.address))
                .map(|lease| lease.range.ports())
                .sum()
        })
    }

    fn missing(&self, node: &str, demand: &Demand) -> u32 {
        demand.ports().saturating_sub(self.held(node, demand))
    }

    fn meet_demands(&mut self) -> BTreeMap<String, Refusal> {
        let short = self.short();
        if short.is_empty() {
            return BTreeMap::new();
        }
        let mut free = self.free_ports();
        for (_, node, demand) in short {
            self.take_back_drain(node, demand);
            self.take(node, demand, &mut free);
            self.exchange(node, demand, &mut free);
        }
        let still_short = self.short();
        self.squeeze(&still_short);
        self.refusals(&still_short)
    }

    /// What is held for demands that ask for more. Who holds least is served first: newcomers
    /// before nodes that grow.
    fn short(&self) -> Vec<(u32, &'a String, &'a Demand)> {
        let demands = self.situation.demands.iter();
        let mut short: Vec<_> = demands
            .flat_map(|(node, demands)| demands.iter().map(move |demand| (node, demand)))
            .map(|(node, demand)| (self.held(node, demand), node, demand))
            .filter(|(held, _, demand)| *held < demand.ports())
            .collect();
        short.sort_by_key(|(held, node, _)| (*held, *node));
        short
    }

    fn free_ports(&self) -> BTreeMap<Ipv4Addr, Free> {
        let mut taken: BTreeMap<Ipv4Addr, Vec<PortRange>> = self.listener_blocks.clone();
        let held = self.books.held.values().flatten().map(|lease| lease.range);
        let resting = self.books.resting.iter().map(|resting| resting.range);
        for range in held.chain(resting) {
            taken.entry(range.address).or_default().push(range);
        }
        let settings = self.situation.settings;
        let addresses = self.situation.addresses.iter();
        addresses
            .map(|address| {
                let taken = taken.remove(address).unwrap_or_default();
                (*address, Free::between(*address, settings, taken))
            })
            .collect()
    }

    /// A node that is short uses its own draining ranges again before it gets others. Every mux
    /// has them as the node's still.
    fn take_back_drain(&mut self, node: &str, demand: &Demand) {
        let mut missing = self.missing(node, demand);
        let (settings, epoch) = (self.situation.settings, self.next_epoch);
        let Some(leases) = self.books.held.get_mut(node) else { return };
        for lease in leases {
            let is_at_listener = lease.drain_until.is_some() || !lease.taken.is_empty();
            if lease.state == LeaseState::Draining
                && !is_at_listener
                && settings.has(lease.range)
                && demand.frontends.contains(&lease.range.address)
                && lease.range.ports() <= missing
            {
                missing -= lease.range.ports();
                lease.state = LeaseState::Usable;
                lease.epoch = epoch;
            }
        }
    }

    /// Ranges that are to stay. What drains falls into pieces and goes; it takes no room.
    fn staying(&self, node: &str) -> usize {
        let leases = self.books.held.get(node).into_iter().flatten();
        leases.filter(|lease| !lease.is_leaving()).count()
    }

    fn grant(&mut self, node: &str, range: PortRange) {
        let lease = Lease::new(range, self.next_epoch, LeaseState::Granted);
        self.books.held.entry(node.to_owned()).or_default().push(lease);
    }

    fn take(&mut self, node: &str, demand: &Demand, free: &mut BTreeMap<Ipv4Addr, Free>) {
        let mut missing = self.missing(node, demand);
        let mut room = RANGES_MAX.saturating_sub(self.staying(node));
        // The first frontend that has room for all of it, else what there is, in order.
        let whole = demand
            .frontends
            .iter()
            .find(|address| free.get(*address).is_some_and(|free| free.ports() >= missing));
        let order = whole.map_or(&demand.frontends[..], std::slice::from_ref);
        for address in order {
            let Some(free) = free.get_mut(address) else { continue };
            for range in free.take(demand.shape, missing, room) {
                missing -= range.ports();
                room -= 1;
                self.grant(node, range);
            }
        }
    }

    /// A node that holds as many ranges as it may, and too few ports, gives small ranges for
    /// larger ones.
    fn exchange(&mut self, node: &str, demand: &Demand, free: &mut BTreeMap<Ipv4Addr, Free>) {
        if self.staying(node) < RANGES_MAX {
            return;
        }
        // BOUND: each exchange leaves one small range less.
        for _ in 0..RANGES_MAX {
            let missing = self.missing(node, demand);
            if missing == 0 {
                break;
            }
            let leases = self.books.held.get(node).into_iter().flatten();
            let smallest = leases
                .filter(|lease| !lease.is_leaving())
                .filter(|lease| demand.frontends.contains(&lease.range.address))
                .map(|lease| lease.range)
                .min_by_key(PortRange::ports);
            let Some(smallest) = smallest else { break };
            let larger = demand.frontends.iter().find_map(|address| {
                let mut rest = free.get(address)?.clone();
                let range = rest.take(demand.shape, missing + smallest.ports(), 1).pop()?;
                (range.ports() > smallest.ports()).then_some((rest, range))
            });
            let Some((rest, range)) = larger else {
                self.lost.insert(node.to_owned());
                break;
            };
            free.insert(range.address, rest);
            self.drain(node, smallest, None);
            self.grant(node, range);
        }
    }

    /// Makes nodes that hold more than they should drain enough for those that are short.
    fn squeeze(&mut self, short: &[(u32, &String, &Demand)]) {
        let mut missing: BTreeMap<&[Ipv4Addr], (u32, &Demand)> = BTreeMap::new();
        for (held, _, demand) in short {
            missing.entry(&demand.frontends).or_insert((0, demand)).0 += demand.ports() - held;
        }
        for (mut missing, demand) in missing.into_values() {
            let (draining, resting) = self.underway(demand);
            missing = missing.saturating_sub(draining + resting);
            if missing == 0 {
                continue;
            }
            // Who can best do without comes first.
            let nodes = self.books.held.keys();
            let mut surplus: BTreeSet<(Reverse<u32>, String)> =
                nodes.map(|node| (Reverse(self.surplus(node, demand)), node.clone())).collect();
            while missing > 0
                && let Some((_, node)) = surplus.pop_first()
            {
                let ports = missing.next_power_of_two();
                let Some(range) = self.spare(&node, demand, ports) else { continue };
                missing = missing.saturating_sub(range.ports());
                self.drain(&node, range, None);
                surplus.insert((Reverse(self.surplus(&node, demand)), node));
            }
        }
    }

    /// Ports that `node` holds on `demand`'s frontends and can do without.
    fn surplus(&self, node: &str, demand: &Demand) -> u32 {
        let own = self.situation.demands.get(node).map_or(&[][..], Vec::as_slice);
        own.iter()
            .filter(|own| own.frontends.iter().any(|one| demand.frontends.contains(one)))
            .map(|own| self.held(node, own).saturating_sub(own.ports()))
            .min()
            .unwrap_or(0)
    }

    /// Ports on the demand's frontends that drain or rest, listener blocks left out.
    fn underway(&self, demand: &Demand) -> (u32, u32) {
        let whole = |range: &PortRange| self.situation.settings.whole(range.address);
        let count = |range: &PortRange| {
            let Some(range) = whole(range).intersection(*range) else { return 0 };
            let blocks = self.listener_blocks.get(&range.address).into_iter().flatten();
            let listeners: u32 =
                blocks.filter_map(|block| block.intersection(range)).map(|part| part.ports()).sum();
            range.ports() - listeners
        };
        let on_demand = |range: &PortRange| demand.frontends.contains(&range.address);
        let draining = self
            .books
            .held
            .values()
            .flatten()
            .filter(|lease| lease.is_leaving() && on_demand(&lease.range))
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

    fn refusals(&self, short: &[(u32, &String, &Demand)]) -> BTreeMap<String, Refusal> {
        let mut known: BTreeMap<&[Ipv4Addr], (Supply, (u32, u32))> = BTreeMap::new();
        let mut refusals = BTreeMap::new();
        for (held, node, demand) in short {
            let (supply, (draining, resting)) = *known
                .entry(&demand.frontends)
                .or_insert_with(|| (self.supply(demand), self.underway(demand)));
            let (node, wanted, held) = ((*node).clone(), demand.ports(), *held);
            let refusal = if self.lost.contains(&node) {
                Refusal::TooManyRanges { node: node.clone(), wanted, held }
            } else if supply.needed > supply.available() {
                Refusal::NoRoom { node: node.clone(), wanted, held, supply }
            } else {
                Refusal::Waiting { node: node.clone(), wanted, held, supply, draining, resting }
            };
            refusals.insert(node, refusal);
        }
        refusals
    }

    /// What the demand's frontends can give, and who needs it.
    fn supply(&self, demand: &Demand) -> Supply {
        let sharing = self
            .situation
            .demands
            .values()
            .flatten()
            .filter(|other| other.frontends.iter().any(|one| demand.frontends.contains(one)));
        let (nodes, needed) = sharing
            .fold((0, 0), |(nodes, needed), other| (nodes + 1, needed + u64::from(other.ports())));
        let settings = self.situation.settings;
        let listener_ports = demand
            .frontends
            .iter()
            .flat_map(|address| self.listener_blocks.get(address).into_iter().flatten())
            .filter_map(|block| block.intersection(settings.whole(block.address)))
            .map(|part| part.ports())
            .sum();
        Supply {
            nodes,
            needed,
            frontends: demand.frontends.len() as u32,
            ports_per_frontend: settings.ports(),
            listener_ports,
        }
    }
}

/// Ports of a range on which Services listen.
fn listening(situation: &Situation<'_>, range: PortRange) -> BTreeSet<u16> {
    let ports = situation.listeners.get(&range.address).into_iter().flatten();
    ports.filter(|port| range.contains(**port)).copied().collect()
}
