//! The search for a port that is free for a destination.
//!
//! A port is taken by inserting the reverse entry of the flow that wants it; then the flow is
//! recorded.

use core::cell::Cell;

use crate::{
    Event, Family, Port, V4,
    agent::{AgentTables, NotInserted, Step, watch, watched},
    flow, hash,
    limits::{BLOCK_PORTS, SEGMENTS_MAX},
    packet::Headers,
    positions::{self, Found, Run},
    protocol, quota,
    tables::{
        AgentSettings, Flow, FlowKey, FlowKind, Policy, Segment, Side, Ticks, block_flag, mark,
        policy_flag,
    },
};

type Address = <V4 as Family>::Address;

/// Steps of one search: a port tried, a segment left, or a summary bit put right each.
pub const STEPS: u32 = 64;
/// Tries by chance that may meet gaps of the holding before the destination is watched.
pub const MISSES_MAX: u32 = 16;
/// Ports in use that a search by chance may meet before the destination is watched. A destination
/// that uses an eighth of the holding meets so many once in 500 searches, one that uses nine tenths
/// nearly always: rows are for those that need them.
pub const COLLISIONS_MAX: u32 = 3;
/// Ports of a policy's first segment where that is so small that one port in use is a large part of
/// it: there the first collision is enough.
pub const SMALL_PORTS: u16 = 64;

/// A flow that looks for a port.
#[derive(Clone, Copy)]
struct Wanted {
    key: FlowKey<Address>,
    /// Key of the reverse entry that is being tried.
    // VERIFIER: this key and the next stand here to spare the stack.
    reverse: FlowKey<Address>,
    /// Key of the peer of what stood there.
    other: FlowKey<Address>,
    idle: u32,
    policy: u8,
    /// [`mark::KEPT`] marks of the flow.
    kept: u16,
    /// What its first packet leaves in its half.
    marks: u16,
    sequence: u32,
    now: Ticks,
    generation: u32,
    random: u64,
    /// The last try found its port in use.
    collided: bool,
    /// What it was given.
    place: Place,
}

/// A port of the holding.
#[derive(Clone, Copy)]
pub struct Place {
    pub(crate) address: Address,
    pub(crate) port: Port,
    pub(crate) position: u32,
}

impl Wanted {
    /// The flow that this packet opens under the policy with this index, to the destination with
    /// this fingerprint.
    #[inline(always)]
    fn new(
        settings: &AgentSettings<Address>,
        headers: &Headers<V4>,
        fingerprint: u64,
        index: u8,
        policy: &Policy,
        now: Ticks,
    ) -> Self {
        let key = flow::key(headers, Side::Egress);
        let ([a, b, c, d], [e, f]) = (key.source.wire(), key.source_port.wire());
        let mut kept = 0;
        if policy.flags & policy_flag::TCP_RESET != 0 {
            kept |= mark::TCP_RESET;
        }
        if policy.flags & policy_flag::GATEWAY_TIMERS != 0 {
            kept |= mark::GATEWAY_TIMERS;
        }
        let source = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let random = hash::secret(settings.seed, [source, fingerprint]);
        let first = flow::first(headers);
        Wanted {
            key,
            reverse: FlowKey::default(),
            other: FlowKey::default(),
            idle: match key.protocol {
                protocol::TCP => policy.idle_tcp,
                protocol::ICMP => policy.idle_icmp,
                _ => policy.idle_udp,
            },
            policy: index,
            kept,
            marks: first.marks,
            sequence: first.sequence,
            now,
            // Another one whenever the same flow is opened.
            generation: (random >> 32) as u32 ^ now.0,
            random,
            collided: false,
            place: Place { address: Address::NONE, port: Port::NONE, position: 0 },
        }
    }

    #[inline(always)]
    fn half(&self, address: Address, port: Port, position: u32) -> Flow<Address> {
        Flow {
            address,
            port,
            kind: FlowKind::Outbound as u8,
            policy: self.policy,
            generation: self.generation,
            last_seen: Cell::new(self.now.0),
            marks: Cell::new(self.kept),
            idle: self.idle,
            position: position as u16,
            sequence: Cell::new(0),
            acknowledgement: Cell::new(0),
        }
    }

    /// Records the flow under the port that it has taken.
    #[inline(always)]
    fn open<T: AgentTables<V4>>(&mut self, tables: &T) -> Outcome {
        let Place { address, port, position } = self.place;
        let half = self.half(address, port, position);
        half.marks.set(self.kept | self.marks);
        half.sequence.set(self.sequence);
        let problem = match tables.insert_flow(&self.key, half) {
            Ok(()) => {
                tables.count(Event::FlowOut);
                quota::use_up(tables, &self.key.source);
                return Outcome::Found;
            }
            Err(problem) => problem,
        };
        // The reverse entry must not stand alone.
        tables.remove_flow(&self.reverse);
        let key = &self.key;
        flow::release(tables, key.target, key.target_port, key.protocol, position);
        match (problem, tables.flow(&self.key)) {
            // Another CPU opened the same flow in the same moment: its port it is.
            (NotInserted::Exists, Some(other)) => {
                self.place.address = other.address;
                self.place.port = other.port;
                Outcome::Found
            }
            (NotInserted::Exists, None) | (NotInserted::Busy, _) => Outcome::Lost,
            (NotInserted::Full, _) => Outcome::TableFull,
        }
    }

    #[inline(always)]
    fn has_ports(&self) -> bool {
        matches!(self.key.protocol, protocol::TCP | protocol::UDP | protocol::ICMP)
    }

    #[inline(always)]
    fn reverse_half(&self, position: u32) -> Flow<Address> {
        let half = self.half(self.key.source, self.key.source_port, position);
        half.marks.set(self.kept | mark::UNANSWERED);
        half
    }

    /// Tries to take one position: reserves its port by inserting the reverse entry.
    #[inline(always)]
    fn take<T: AgentTables<V4>>(&mut self, tables: &T, position: u32) -> Outcome {
        let Some(block) = tables.block(position / BLOCK_PORTS) else { return Outcome::Looking };
        if block.flags & block_flag::USABLE == 0 {
            return Outcome::Looking;
        }
        let Some(address) = tables.frontend(block.frontend) else { return Outcome::Looking };
        let port = block.start + (position % BLOCK_PORTS) as u16;
        let port = if self.has_ports() { Port::new(port) } else { Port::NONE };
        self.reverse = self.key.across(address, port, self.key.target_port);
        match tables.insert_flow(&self.reverse, self.reverse_half(position)) {
            Ok(()) => {
                self.place = Place { address, port, position };
                return Outcome::Found;
            }
            Err(NotInserted::Full) => return Outcome::TableFull,
            Err(NotInserted::Busy) => return Outcome::Lost,
            Err(NotInserted::Exists) => {}
        }
        tables.count(Event::PortCollision);
        self.collided = true;
        // What stands there may be over; then its port is free.
        let Some(settings) = tables.settings() else { return Outcome::Full };
        let Some(half) = tables.flow(&self.reverse) else { return Outcome::Looking };
        self.other = self.reverse.peer(half);
        let other = tables.flow(&self.other);
        if flow::expired(half, other, self.key.protocol, settings, self.now) {
            // The next step finds its port free.
            tables.remove_flow(&self.other);
            tables.remove_flow(&self.reverse);
            self.collided = false;
        }
        Outcome::Looking
    }
}

/// The search for a port in the policy's segments, the first one with room first.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// The number of the destination's row, once it is watched; else 0.
    row: u32,
    fingerprint: u64,
    /// Index of the segment that is being searched.
    segment: u32,
    /// Tries that failed.
    tries: u32,
    /// Those of them that met a port in use; in a small segment all but one are taken as met.
    collisions: u32,
    wanted: Wanted,
    end: Outcome,
}

/// Where a search stands.
// VERIFIER: without payloads; what a variant leaves unset must not be read, even for nothing.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Not at its end.
    Looking,
    /// [`Wanted::place`] is the flow's.
    Found,
    /// Every port is in use for the destination.
    Full,
    /// The flow was opened by another packet meanwhile, and is over already.
    Lost,
    /// The flow table has no room.
    TableFull,
}

impl Search {
    /// The search for a port of the flow that this packet opens.
    #[inline(always)]
    pub(crate) fn new<T: AgentTables<V4>>(
        tables: &T,
        settings: &AgentSettings<Address>,
        headers: &Headers<V4>,
        index: u8,
        policy: &Policy,
        now: u64,
    ) -> Self {
        let now = Ticks::from_nanoseconds(now);
        let fingerprint = positions::fingerprint(
            settings,
            headers.target,
            if headers.protocol == protocol::ICMP { Port::NONE } else { headers.target_port },
            headers.protocol,
        );
        let is_small = policy.blocks[0].count <= SMALL_PORTS / BLOCK_PORTS as u16;
        Search {
            row: watched(tables, fingerprint),
            fingerprint,
            segment: 0,
            tries: 0,
            collisions: if is_small { COLLISIONS_MAX - 1 } else { 0 },
            wanted: Wanted::new(settings, headers, fingerprint, index, policy, now),
            end: Outcome::Looking,
        }
    }

    #[inline(always)]
    fn next<T: AgentTables<V4>>(&mut self, tables: &T) -> Outcome {
        let Some(policy) = tables.policy(self.wanted.policy) else { return Outcome::Full };
        let segment = policy.blocks[self.segment as usize % SEGMENTS_MAX];
        if segment.count == 0 {
            return Outcome::Full;
        }
        if !self.wanted.has_ports() {
            return self.next_whole(tables, segment);
        }
        let position = if self.row == 0 {
            let ports = segment.count as u32 * BLOCK_PORTS;
            segment.first as u32 * BLOCK_PORTS + hash::below(self.wanted.random as u32, ports)
        } else {
            let Some(barred) = tables.positions(0) else { return Outcome::Full };
            let Some(row) = tables.positions(self.row) else { return Outcome::Full };
            match positions::find(tables, row, barred, run(segment), self.wanted.random) {
                Found::Free(position) => position,
                Found::Again => return Outcome::Looking,
                Found::Full => {
                    self.segment += 1;
                    let more = self.segment < policy.segments as u32;
                    return if more { Outcome::Looking } else { Outcome::Full };
                }
            }
        };
        match self.wanted.take(tables, position) {
            Outcome::Looking => {}
            Outcome::Found => {
                self.mark(tables, position);
                return self.wanted.open(tables);
            }
            end => return end,
        }
        self.wanted.random = hash::spread(self.fingerprint, [self.wanted.random, 0]);
        self.tries += 1;
        self.collisions += self.wanted.collided as u32;
        if self.row == 0 && (self.collisions >= COLLISIONS_MAX || self.tries >= MISSES_MAX) {
            self.row = watch(tables, self.fingerprint);
            // Where all rows are others', nothing says that a segment is full: each one gets its
            // share of the steps.
            let share = self.tries * policy.segments as u32 / STEPS;
            self.segment = if self.row == 0 { share } else { 0 };
        }
        if self.wanted.collided {
            self.wanted.collided = false;
            self.mark(tables, position);
        }
        Outcome::Looking
    }

    /// For a protocol without ports: the address itself is taken or it is not.
    #[inline(always)]
    fn next_whole<T: AgentTables<V4>>(&mut self, tables: &T, segment: Segment) -> Outcome {
        self.wanted.collided = false;
        match self.wanted.take(tables, segment.first as u32 * BLOCK_PORTS) {
            Outcome::Looking if self.wanted.collided => Outcome::Full,
            Outcome::Found => self.wanted.open(tables),
            // What stood there was over, and is gone.
            end => end,
        }
    }

    /// Notes in the destination's row, if it has one, that a position is taken.
    #[inline(always)]
    fn mark<T: AgentTables<V4>>(&self, tables: &T, position: u32) {
        if self.row != 0
            && let Some(row) = tables.positions(self.row)
        {
            row.take(tables, position);
        }
    }
}

impl<T: AgentTables<V4>> Step<T> for Search {
    type Result = (Outcome, Place);

    #[inline(always)]
    fn result(&self) -> (Outcome, Place) {
        (self.end, self.wanted.place)
    }

    #[inline(always)]
    fn step(&mut self, tables: &T) -> bool {
        self.end = self.next(tables);
        matches!(self.end, Outcome::Looking)
    }
}

/// The words of a segment.
#[inline(always)]
fn run(segment: Segment) -> Run {
    let first = segment.first as u32 * BLOCK_PORTS / 64;
    let last = (segment.first as u32 + segment.count as u32) * BLOCK_PORTS - 1;
    Run { first, last: last / 64 }
}
