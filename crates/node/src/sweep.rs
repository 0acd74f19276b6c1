//! Removes flows that are over, and learns on the way which ports are in use.
//!
//! A pass goes once through the flow table, a bounded number of rows at a time. Whether a flow is
//! over, [`datapath::flow`] decides; both halves go together. The programs judge an entry
//! themselves when a packet meets it, so a slow sweep costs room and never correctness.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use datapath::{
    Port, flow,
    limits::{BLOCK_PORTS, INBOUND_ALLOWANCE, OTHERS_ALLOWANCE},
    positions::{Bits, Positions, SUMMARY, WORDS, fingerprint},
    protocol,
    tables::{AgentSettings, Flow, FlowKey, Quota, Side, Ticks, mark},
};
use model::truth::{Truth, Untrue};
use nix::time::{ClockId, clock_gettime};

use crate::{
    blocks::Blocks,
    clock,
    maps::{self, Address, FlowBytes, Flows, TableError},
    pins::Pins,
    raw::{self, AllowancesMemory, PositionsMemory, Raw},
    walk::{BATCH_ROWS, Half, Walk},
};

/// Rows of the flow table that one step looks at, at most.
pub const STEP_ROWS_MAX: u32 = 32 * BATCH_ROWS;
/// CPU time after which a step ends, however few rows it has looked at: a row costs as much as the
/// memory that it lies in. At a step each quarter of a second this is 4.4 % of one core.
pub const STEP_TIME_MAX: Duration = Duration::from_millis(11);
/// CPU time after which looking at destinations that were asked for ends for this time.
pub const ANSWER_TIME_MAX: Duration = Duration::from_millis(2);
/// Connections that end with RST within one step; more of them end in the next pass.
pub const ENDED_MAX: usize = 1024;
/// Destinations that wait for a look out of turn.
pub const ASKED_MAX: usize = 64;

/// CPU time of this thread.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What one whole pass has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Flows, counted once each.
    pub flows: u64,
    /// Flows that were over and were removed.
    pub removed: u64,
    /// Blocks (address, first port) on which outbound flows are left.
    pub blocks: Blocks,
    /// Outbound flows by the address that they leave by.
    pub addresses: BTreeMap<Address, u32>,
    /// Most ports in use towards one destination.
    pub ports_used: u32,
    /// Flows that were ended because what they were opened for is no more, by what that is.
    pub untrue: BTreeMap<Untrue, u64>,
    /// Connections that must end and wait for the next pass: too many ends were to be told.
    pub postponed: u64,
}

/// What the flows of a node live by. Those on ports that it does not hold have lost their address
/// and are ended, and so are those that are not true any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Blocks (address, first port).
    pub blocks: Blocks,
    /// Ports of these blocks that are taken: a Service listens there now.
    pub taken: BTreeSet<(Address, u16)>,
    /// What is true of Services and pods, once that is known.
    pub truth: Option<Truth>,
    /// That has been so for a while, and may cut connections.
    pub has_lasted: bool,
}

impl Holding {
    /// Why a flow may not live on, if so.
    fn untrue(&self, half: &Half, table: &Flows) -> Option<Untrue> {
        // A peer that cannot be read is as good as none.
        let state = || half.state(half.peer(table).ok().flatten().as_ref());
        let why = self.truth.as_ref()?.judge(&half.held(), state)?;
        let is_certain = self.has_lasted || why.is_certain() || half.key.protocol != protocol::TCP;
        is_certain.then_some(why)
    }

    /// The block of the port that a flow uses; nothing where the node does not hold that port. A
    /// protocol without ports uses the whole address: any block of it.
    fn block_of(&self, (address, port): (Address, u16)) -> Option<(Address, u16)> {
        if port == 0 {
            return self.blocks.first_of(address);
        }
        let block = (address, block_of(port));
        let is_taken = !self.taken.is_empty() && self.taken.contains(&(address, port));
        (self.blocks.contains(&block) && !is_taken).then_some(block)
    }
}

/// Goes round in the flow table.
pub struct Sweep {
    flows: Flows,
    positions: PositionsMemory,
    walk: Walk,
    usage: Usage,
    /// Destinations of this pass's flows, and those that are watched, by their fingerprints.
    destinations: HashMap<u64, Destination, BuildHasherDefault<AsItIs>>,
    /// Positions that flows of this pass were seen on, for each row of a watched destination.
    seen: Vec<Box<[u64; WORDS]>>,
    /// Bits that were set without a flow when the last pass ended.
    doubtful: BTreeMap<u64, Box<[u64; WORDS]>>,
    allowances: AllowancesMemory,
    /// Whose allowances the flows of a pod use.
    quotas: BTreeMap<Address, Quota>,
    /// Flows of this pass by row of the allowances.
    counted: BTreeMap<u32, u32>,
    /// Those of them that nobody has answered.
    unanswered: BTreeMap<u32, u32>,
    /// Flows that each row had ever opened, and those that nobody had answered, when this pass
    /// began.
    opened: BTreeMap<u32, (u32, u32)>,
    /// Connections that are over and whose ends are to be told.
    ended: Vec<Ended>,
    /// Destinations whose ports are looked at out of turn, and how many blocks that was done for.
    asked: VecDeque<(Remote, usize)>,
}

/// A destination: address, port in wire order, IP protocol.
pub type Remote = (Address, Port, u8);

/// A connection that is over, and what each of its ends expects next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The end on this node, and the number that makes it believe an RST.
    pub inside: (Address, Port),
    /// What the other end sees.
    pub outside: (Address, Port),
    /// The other end.
    pub remote: (Address, Port),
    /// The same, as the end on this node sees it.
    pub remote_inside: (Address, Port),
    /// What the end on this node expects next.
    pub inside_expects: u32,
    /// What the other end expects next.
    pub remote_expects: u32,
}

fn ended(half: &Half, peer: &Flow<Address>) -> Ended {
    let (egress_key, ingress_key) = half.keys();
    let (egress, ingress) = if half.is_egress() { (&half.row, peer) } else { (peer, &half.row) };
    Ended {
        inside: (egress_key.source, egress_key.source_port),
        outside: (ingress_key.target, ingress_key.target_port),
        remote: (ingress_key.source, ingress_key.source_port),
        remote_inside: (egress_key.target, egress_key.target_port),
        inside_expects: egress.acknowledgement.get(),
        remote_expects: ingress.acknowledgement.get(),
    }
}

/// A destination in one pass.
struct Destination {
    flows: u32,
    /// Its place in [`Sweep::seen`], where it is watched.
    seen: Option<u32>,
}

/// A fingerprint is a keyed hash already: nobody outside can make two of them meet.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Its lowest bit is always set, and the table goes by the low bits.
        self.0 = number.rotate_right(8);
    }
}

impl Sweep {
    /// A sweep of the tables that are pinned there.
    pub fn open(pins: &Pins) -> Result<Sweep, TableError> {
        let mut sweep = Sweep {
            flows: maps::open_flows(pins)?,
            positions: maps::open_positions(pins)?,
            walk: Walk::default(),
            usage: Usage::default(),
            destinations: HashMap::default(),
            seen: Vec::new(),
            doubtful: BTreeMap::new(),
            allowances: maps::open_allowances(pins)?,
            quotas: BTreeMap::new(),
            counted: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            opened: BTreeMap::new(),
            ended: Vec::new(),
            asked: VecDeque::new(),
        };
        sweep.begin();
        Ok(sweep)
    }

    /// Says whose allowances the flows of each pod use.
    pub fn set_quotas(&mut self, quotas: &BTreeMap<Address, Quota>) {
        if self.quotas != *quotas {
            self.quotas.clone_from(quotas);
            self.begin();
        }
    }

    /// Asks for a look at the ports of one destination, whose flows are refused for want of them:
    /// some may be over. [`ASKED_MAX`] at a time; further ones wait for the pass.
    pub fn ask(&mut self, destination: Remote) {
        let is_asked = self.asked.iter().any(|(asked, _)| *asked == destination);
        if self.asked.len() < ASKED_MAX && !is_asked {
            self.asked.push_back((destination, 0));
        }
    }

    /// Looks at the ports of destinations that were asked for, as far as [`ANSWER_TIME_MAX`] goes.
    pub fn answer(
        &mut self,
        settings: &AgentSettings<Address>,
        holding: &Holding,
    ) -> Result<(), TableError> {
        let start = spent();
        while let Some(((target, port, protocol), looked)) = self.asked.pop_front() {
            let now = clock::ticks();
            let is_echo = protocol == datapath::protocol::ICMP;
            let mut blocks = holding.blocks.iter().skip(looked).enumerate();
            // BOUND: the blocks of a holding, BLOCKS_MAX.
            let late = blocks.find_map(|(done, (vip, first))| {
                if spent().saturating_sub(start) >= ANSWER_TIME_MAX {
                    return Some(Ok(looked + done));
                }
                for held in first..first + BLOCK_PORTS as u16 {
                    let key = FlowKey {
                        source: target,
                        target: vip,
                        source_port: if is_echo { Port::NONE } else { port },
                        target_port: held.into(),
                        protocol,
                        side: Side::Ingress as u8,
                        reserved: [0; 2],
                    };
                    let found = self.flows.get(&Raw(key));
                    let half = found.map(|bytes| bytes.and_then(|bytes| Half::of(key, bytes)));
                    let looked = half.and_then(|half| match half {
                        Some(half) => self.look(settings, holding, &half, now),
                        None => Ok(()),
                    });
                    if let Err(problem) = looked {
                        return Some(Err(problem));
                    }
                }
                None
            });
            if let Some(late) = late {
                self.asked.push_front(((target, port, protocol), late?));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the connections that have come to their end since the last call; at most
    /// [`ENDED_MAX`]. Further ones stay in the table until there is room.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Whether no pass is under way.
    pub fn is_at_start(&self) -> bool {
        self.walk == Walk::default()
    }

    /// Forgets the pass under way: what it has seen is from before a change of the holding.
    pub fn restart(&mut self) {
        self.begin();
    }

    /// Goes on for one step. At the end of a pass, says what it has found.
    pub fn step(
        &mut self,
        settings: &AgentSettings<Address>,
        holding: &Holding,
    ) -> Result<Option<Usage>, TableError> {
        let start = spent();
        // BOUND: STEP_ROWS_MAX.
        for _ in 0..STEP_ROWS_MAX / BATCH_ROWS {
            if spent().saturating_sub(start) >= STEP_TIME_MAX {
                break;
            }
            let Some(halves) = self.walk.next(&self.flows)? else { break };
            let now = clock::ticks();
            for half in &halves {
                self.look(settings, holding, half, now)?;
            }
            if self.walk.has_ended() {
                return Ok(Some(self.end()));
            }
        }
        Ok(None)
    }

    fn begin(&mut self) {
        self.walk = Walk::default();
        self.usage = Usage::default();
        self.destinations.clear();
        self.counted.clear();
        self.opened.clear();
        self.unanswered.clear();
        let own = self.quotas.values().flat_map(|quota| [quota.pod, quota.namespace]);
        for row in own.chain([INBOUND_ALLOWANCE, OTHERS_ALLOWANCE]) {
            if let Some(allowance) = self.allowances.row(row).filter(|_| row != 0) {
                let begun = (allowance.opened.get(), allowance.unanswered.get());
                self.opened.insert(row, begun);
            }
        }
        self.seen.clear();
        for (_, row) in watched(&self.positions) {
            let seen = Some(self.seen.len() as u32);
            self.destinations.insert(row.fingerprint.get(), Destination { flows: 0, seen });
            self.seen.push(Box::new([0; WORDS]));
        }
    }

    fn end(&mut self) -> Usage {
        self.free_positions();
        for (row, (opened, unanswered)) in &self.opened {
            let counted = |rows: &BTreeMap<u32, u32>| rows.get(row).copied().unwrap_or(0);
            self.allowances.set_used(*row, counted(&self.counted), *opened);
            self.allowances.set_unanswered(*row, counted(&self.unanswered), *unanswered);
        }
        let flows = self.destinations.values().map(|destination| destination.flows);
        self.usage.ports_used = flows.max().unwrap_or(0);
        let usage = std::mem::take(&mut self.usage);
        self.begin();
        usage
    }

    fn look(
        &mut self,
        settings: &AgentSettings<Address>,
        holding: &Holding,
        half: &Half,
        now: Ticks,
    ) -> Result<(), TableError> {
        let outside = outside(half);
        let block = if half.is_outbound() { holding.block_of(outside) } else { None };
        let is_lost = half.is_outbound() && block.is_none();
        let untrue = holding.untrue(half, &self.flows);
        let must_go = is_lost || untrue.is_some();
        if must_go || is_over(&self.flows, settings, half, now)? {
            // Whose port has a new owner is told in any case, and so is whose Service or pod is
            // gone; others where their rule says so.
            let is_told = half.key.protocol == protocol::TCP
                && (half.row.marks.get() & mark::TCP_RESET != 0
                    || untrue.is_some()
                    || (is_lost && holding.taken.contains(&outside)));
            if is_told && self.ended.len() >= ENDED_MAX {
                self.usage.postponed += 1;
                return Ok(());
            }
            if let Some(peer) = self.remove(half, must_go)? {
                self.usage.removed += 1;
                if let Some(why) = untrue {
                    *self.usage.untrue.entry(why).or_default() += 1;
                }
                if half.is_outbound() {
                    self.release(settings, half);
                }
                if is_told
                    && let Some(peer) = peer
                    && flow::can_be_reset(&half.row, &peer, half.key.protocol)
                {
                    self.ended.push(ended(half, &peer));
                }
                return Ok(());
            }
            // It may have gone a moment ago, with its other half of the same batch.
            if self.flows.get(&Raw(half.key))?.is_none() {
                return Ok(());
            }
        }
        if half.is_egress() {
            self.count(settings, half, block.unwrap_or((outside.0, block_of(outside.1))));
        } else if half.row.marks.get() & mark::UNANSWERED != 0 {
            let quota = self.quota_of(&half.row.address);
            for row in [quota.pod, quota.namespace] {
                *self.unanswered.entry(row).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Whose allowances a source's flows use.
    fn quota_of(&self, source: &Address) -> Quota {
        let others = Quota { pod: OTHERS_ALLOWANCE, namespace: 0 };
        self.quotas.get(source).copied().unwrap_or(others)
    }

    /// Counts a flow, by its half that leaves.
    fn count(&mut self, settings: &AgentSettings<Address>, half: &Half, block: (Address, u16)) {
        self.usage.flows += 1;
        let quota = match half.is_outbound() {
            true => self.quota_of(&half.key.source),
            false => Quota { pod: INBOUND_ALLOWANCE, namespace: 0 },
        };
        for row in [quota.pod, quota.namespace] {
            *self.counted.entry(row).or_default() += 1;
        }
        if !half.is_outbound() {
            return;
        }
        self.usage.blocks.insert(block);
        *self.usage.addresses.entry(block.0).or_default() += 1;
        let destination = match self.destinations.entry(fingerprint_of(settings, half)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Destination { flows: 0, seen: None }),
        };
        destination.flows += 1;
        let position = half.row.position;
        if let Some(seen) = destination.seen
            && let Some(word) = self.seen[seen as usize].get_mut(position as usize / 64)
        {
            *word |= 1 << (position % 64);
        }
    }

    /// Removes both halves; what the other one was, once they are gone. Nothing if the first one
    /// has changed since it was judged: a packet came, or another flow has taken its place. A flow
    /// that must go goes even if packets still come.
    ///
    /// A flow that is over and unchanged cannot come to life again: whatever packet comes judges it
    /// over as well and opens another one.
    fn remove(
        &mut self,
        half: &Half,
        must_go: bool,
    ) -> Result<Option<Option<Flow<Address>>>, TableError> {
        let (key, peer_key) = (Raw(half.key), Raw(half.peer_key()));
        if !must_go && self.flows.get(&key)? != Some(half.bytes) {
            return Ok(None);
        }
        if self.take(&key, half.row.generation)?.is_none() {
            return Ok(None);
        }
        Ok(Some(self.take(&peer_key, half.row.generation)?))
    }

    /// Takes a half out if it is of this generation. It is asked first: a half that is taken out
    /// only to be put back is missed by the packets that come in between.
    fn take(
        &mut self,
        key: &Raw<FlowKey<Address>>,
        generation: u32,
    ) -> Result<Option<Flow<Address>>, TableError> {
        let of_it = |bytes: &FlowBytes| {
            raw::row::<Flow<Address>>(bytes).filter(|row| row.generation == generation)
        };
        if self.flows.get(key)?.as_ref().and_then(of_it).is_none() {
            return Ok(None);
        }
        let Some(bytes) = self.flows.take(key)? else { return Ok(None) };
        let taken = of_it(&bytes);
        if taken.is_none() {
            // Between the two calls the flow was found over and another one was opened.
            self.flows.add(key, &bytes)?;
        }
        Ok(taken)
    }

    fn release(&self, settings: &AgentSettings<Address>, half: &Half) {
        let fingerprint = fingerprint_of(settings, half);
        for (_, row) in watched(&self.positions) {
            if row.fingerprint.get() == fingerprint {
                row.release(&self.positions, half.row.position.into());
            }
        }
    }

    /// Frees what no flow uses: bits that two passes in a row found set without a flow (programs
    /// that met an unexpected end leave such), and rows of destinations without any.
    fn free_positions(&mut self) {
        let mut doubtful = BTreeMap::new();
        for (_, row) in watched(&self.positions) {
            let fingerprint = row.fingerprint.get();
            let known =
                self.destinations.get(&fingerprint).and_then(|destination| destination.seen);
            let Some(seen) = known.map(|seen| &self.seen[seen as usize]) else { continue };
            let mut left = Box::new([0u64; WORDS]);
            for (word, bits) in row.words.iter().enumerate() {
                let unused = bits.get() & !seen[word];
                let twice = self.doubtful.get(&fingerprint).map_or(0, |last| last[word] & unused);
                left[word] = unused & !twice;
                for bit in (0..64).filter(|bit| twice & 1 << bit != 0) {
                    row.release(&self.positions, word as u32 * 64 + bit);
                }
            }
            self.reopen(row);
            let is_idle = row.taken() == 0 && seen.iter().all(|word| *word == 0);
            if is_idle && self.doubtful.contains_key(&fingerprint) {
                self.positions.clear_bits(&row.fingerprint, u64::MAX);
            } else {
                doubtful.insert(fingerprint, left);
            }
        }
        self.doubtful = doubtful;
    }

    /// Opens words that the summary calls closed although they have free positions: a position was
    /// given back just while a program closed its word.
    fn reopen(&self, row: &Positions) {
        let Some(barred) = self.positions.row(0) else { return };
        for (word, bits) in row.words.iter().enumerate() {
            if bits.get() | barred.words[word].get() != u64::MAX {
                self.positions.clear_bits(&row.summary[word / 64 % SUMMARY], 1 << (word % 64));
                self.positions.clear_bits(&row.top, 1 << (word / 64));
            }
        }
    }
}

/// Rows of positions that destinations have.
fn watched(positions: &PositionsMemory) -> impl Iterator<Item = (u32, &Positions)> {
    (1..positions.rows())
        .filter_map(|index| Some((index, positions.row(index)?)))
        .filter(|(_, row)| row.fingerprint.get() != 0)
}

/// Whether a flow is over, asking for its other half only where that matters. What is over by this
/// clock is over for the programs too.
fn is_over(
    table: &Flows,
    settings: &AgentSettings<Address>,
    half: &Half,
    now: Ticks,
) -> Result<bool, TableError> {
    if !flow::looks_idle(&half.row, settings, now) {
        return Ok(false);
    }
    let peer = half.peer(table)?;
    Ok(flow::expired(&half.row, peer.as_ref(), half.key.protocol, settings, now))
}

/// First port of the block that a port is in.
fn block_of(port: u16) -> u16 {
    port - port % BLOCK_PORTS as u16
}

/// What the other end of a flow sees.
fn outside(half: &Half) -> (Address, u16) {
    let (_, ingress) = half.keys();
    (ingress.target, ingress.target_port.number())
}

/// What stands for a flow's destination in its row of positions.
fn fingerprint_of(settings: &AgentSettings<Address>, half: &Half) -> u64 {
    let (egress, _) = half.keys();
    fingerprint(settings, egress.target, egress.target_port, egress.protocol)
}
