//! The decision about a packet that leaves the node.

use core::cell::Cell;

use crate::{
    Drop, Event, Pass, V4,
    agent::{AgentTables, NotInserted, Step, watch, watched},
    flow, fragment, hash, icmp,
    limits::{BLOCK_PORTS, OWN_MARK, SEGMENTS_MAX},
    packet::{self, ETHERNET, ETHERNET_IPV4, Headers, Packet, Transport, tcp_flag},
    positions::{self, Found, Run},
    protocol,
    tables::{
        AgentSettings, Flow, FlowKey, FlowKind, Policy, Segment, Side, Ticks, Translation,
        agent_flag, block_flag, mark, policy_flag,
    },
    verdict::{self, Change, End, Places, Rewrite, Verdict},
};

type Address = [u8; 4];

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

/// Decides about one frame that leaves by the uplink; `now` is the monotonic clock in
/// nanoseconds, `mark` is the packet's (`SO_MARK`).
#[inline(always)]
pub fn egress<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    now: u64,
    mark: u32,
) -> Verdict<V4> {
    match decide(packet, tables, now, mark) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    now: u64,
    mark: u32,
) -> Result<Verdict<V4>, Drop> {
    match packet::ethernet_type(packet) {
        Some(ETHERNET_IPV4) => {}
        Some(_) => return Ok(Verdict::Pass(Pass::NotIp)),
        None => return Err(Drop::Malformed),
    }
    let Some(settings) = tables.settings().filter(|settings| settings.gue_port != 0) else {
        return Ok(Verdict::Pass(Pass::NotConfigured));
    };
    let headers = packet::ipv4(packet, ETHERNET)?;
    if headers.transport == Transport::IcmpError
        && !headers.fragment
        && let Some(verdict) = error(packet, tables, settings, &headers)
    {
        return Ok(verdict);
    }
    let way = way(tables, settings, &headers, now, mark);
    match way.kind {
        Kind::As => {
            if headers.fragment && headers.transport != Transport::Fragment {
                let now = Ticks::from_nanoseconds(now);
                fragment::keep(tables, &headers, Side::Egress, way.address, now);
            }
            Ok(change(packet, &headers, way.address, way.port, settings))
        }
        Kind::Unchanged => Ok(Verdict::Pass(way.pass)),
        Kind::Refused => {
            let flow = key(&headers);
            Ok(Verdict::Refuse { reason: way.reason, flow, policy: way.policy })
        }
        Kind::Dropped => Err(way.reason),
    }
}

/// How a packet leaves.
// VERIFIER: what comes of it is put together in one place, since put together in each it takes
// more stack than there is; and it has no variants with content, since what a variant leaves unset
// must not be read, even for nothing.
#[derive(Clone, Copy)]
struct Way {
    kind: Kind,
    address: Address,
    port: [u8; 2],
    pass: Pass,
    reason: Drop,
    policy: u8,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Under `address` and `port`.
    As,
    /// As it is, because of `pass`.
    Unchanged,
    /// Not at all, because of `reason`, and its sender is told; it would have left under `policy`.
    Refused,
    /// Not at all, because of `reason`.
    Dropped,
}

impl Way {
    const NONE: Way = Way {
        kind: Kind::Dropped,
        address: [0; 4],
        port: [0; 2],
        pass: Pass::NotIp,
        reason: Drop::Malformed,
        policy: 0,
    };

    #[inline(always)]
    const fn leave_as(address: Address, port: [u8; 2]) -> Way {
        Way { kind: Kind::As, address, port, ..Way::NONE }
    }

    #[inline(always)]
    const fn unchanged(pass: Pass) -> Way {
        Way { kind: Kind::Unchanged, pass, ..Way::NONE }
    }

    #[inline(always)]
    const fn refused(reason: Drop, policy: u8) -> Way {
        Way { kind: Kind::Refused, reason, policy, ..Way::NONE }
    }

    #[inline(always)]
    const fn dropped(reason: Drop) -> Way {
        Way { reason, ..Way::NONE }
    }
}

#[inline(always)]
fn way<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
    now: u64,
    mark: u32,
) -> Way {
    let ticks = Ticks::from_nanoseconds(now);
    match headers.transport {
        Transport::Tcp | Transport::Udp | Transport::Echo { .. } | Transport::Other => {
            let key = key(headers);
            if let Some(half) = tables.flow(&key)
                && meets(tables, settings, &key, half, headers, ticks)
            {
                return Way::leave_as(half.address, half.port);
            }
        }
        Transport::Fragment => {
            if let Some(address) = fragment::address(tables, headers, Side::Egress, ticks) {
                return Way::leave_as(address, [0; 2]);
            }
        }
        Transport::IcmpError | Transport::IcmpOther => {}
    }
    let Some(source) = tables.source(&headers.source) else {
        // What bears a VIP or a mux as source and belongs to no flow is forged.
        if tables.is_vip(&headers.source) || tables.is_mux(&headers.source) {
            if mark == OWN_MARK {
                return Way::unchanged(Pass::Answer);
            }
            return Way::dropped(Drop::SpoofedSource);
        }
        return Way::unchanged(Pass::NotOurs);
    };
    if headers.transport == Transport::Udp
        && u16::from_be_bytes(headers.target_port) == settings.gue_port
    {
        return Way::dropped(Drop::GuePort);
    }
    if tables.is_private(&headers.target) {
        return Way::unchanged(Pass::PrivateDestination);
    }
    if settings.flags & agent_flag::LEAVING != 0 {
        return Way::unchanged(Pass::Leaving);
    }
    let index = match headers.protocol {
        protocol::TCP => source.tcp,
        protocol::UDP => source.udp,
        protocol::ICMP => source.icmp,
        _ => source.other,
    };
    let Some(policy) = tables.policy(index) else { return Way::dropped(Drop::NoOutbound) };
    if policy.translation == Translation::Untranslated as u8 {
        return Way::unchanged(Pass::Untranslated);
    }
    let drops_echo = settings.flags & agent_flag::DROP_ICMP_ECHO != 0;
    if policy.translation != Translation::Ports as u8 {
        return Way::dropped(match headers.transport {
            Transport::Other => Drop::Protocol,
            Transport::Echo { request: true } if drops_echo => Drop::IcmpEcho,
            _ => Drop::NoOutbound,
        });
    }
    if settings.flags & agent_flag::HOLD != 0 {
        // Connections to the node's own addresses are left alone even then.
        let is_next = headers.transport == Transport::Tcp && !headers.opens();
        if is_next && headers.source == settings.node {
            return Way::unchanged(Pass::NodeOwn);
        }
        return Way::dropped(Drop::Held);
    }
    match headers.transport {
        Transport::Tcp if !headers.opens() => {
            // Connections to the node's own addresses are nobody's flows and are left alone.
            if headers.source == settings.node {
                return Way::unchanged(Pass::NodeOwn);
            }
            if now < settings.adopt_until && headers.flags & tcp_flag::SYN == 0 {
                return Way::unchanged(Pass::Adopted);
            }
            if is_answered(headers) {
                return Way::refused(Drop::NoFlow, index);
            }
            return Way::dropped(Drop::NoFlow);
        }
        Transport::Tcp | Transport::Udp => {}
        Transport::Echo { request: true } => {
            if drops_echo {
                return Way::dropped(Drop::IcmpEcho);
            }
        }
        // An answer to a request that nobody saw come in.
        Transport::Echo { request: false } => return Way::dropped(Drop::NoFlow),
        Transport::IcmpError if headers.fragment => return Way::dropped(Drop::Fragment),
        Transport::IcmpError => return Way::dropped(Drop::IcmpNoFlow),
        Transport::IcmpOther => return Way::dropped(Drop::IcmpType),
        Transport::Fragment => return Way::dropped(Drop::Fragment),
        Transport::Other if policy.flags & policy_flag::WHOLE_ADDRESS != 0 => {}
        Transport::Other => return Way::dropped(Drop::Protocol),
    }
    open(tables, settings, headers, index, policy, now)
}

/// Whether the sender of a late TCP packet, of no flow, is told by RST (RFC 9293, 3.5.2): not if
/// it tries to connect or sent an RST itself.
#[inline(always)]
pub(crate) fn is_answered(headers: &Headers<V4>) -> bool {
    headers.flags & (tcp_flag::SYN | tcp_flag::RST) == 0
}

/// An ICMP error of the node or a pod about a packet that came in; nothing where that packet is of
/// no flow, or went to another pod.
#[inline(always)]
fn error<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
) -> Option<Verdict<V4>> {
    let inner = icmp::inner(packet, headers)?;
    if inner.source != headers.target
        || (headers.source != inner.target && headers.source != settings.node)
    {
        return None;
    }
    let half = tables.flow(&inner.key(Side::Egress))?;
    let (address, port) = (half.address, half.port);
    icmp::translate(packet, headers, &inner, End::Source, address, port, 0)
        .map(Verdict::RewriteError)
}

/// The key under which a packet's flow stands at egress.
#[inline(always)]
fn key(headers: &Headers<V4>) -> FlowKey<Address> {
    let echo = headers.protocol == protocol::ICMP;
    FlowKey {
        source: headers.source,
        target: headers.target,
        source_port: headers.source_port,
        target_port: if echo { [0; 2] } else { headers.target_port },
        protocol: headers.protocol,
        side: Side::Egress as u8,
        reserved: [0; 2],
    }
}

/// Whether the flow that stands at the packet's key is the packet's; if so, the half has seen it.
///
/// An entry that looks idle is judged together with its peer; what is over is removed, both
/// halves. So is one that the packet ends or opens again: a SYN on a closing connection starts it
/// anew under the same port, and an end must be believed.
#[inline(always)]
pub(crate) fn meets<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    key: &FlowKey<Address>,
    half: &Flow<Address>,
    headers: &Headers<V4>,
    now: Ticks,
) -> bool {
    const ASKED: u8 = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST;
    if headers.flags & ASKED == 0 && !flow::looks_idle(half, settings, now) {
        flow::see(half, headers, now, true);
        return true;
    }
    judge(tables, key, half, headers, now)
}

/// Judges a flow by both its halves.
// VERIFIER: a function of its own, so that its variables do not take stack from the port search.
#[inline(never)]
fn judge<T: AgentTables<V4>>(
    tables: &T,
    key: &FlowKey<Address>,
    half: &Flow<Address>,
    headers: &Headers<V4>,
    now: Ticks,
) -> bool {
    let Some(settings) = tables.settings() else { return false };
    let peer_key = key.peer(half.address, half.port);
    let peer = tables.flow(&peer_key);
    if flow::expired(half, peer, key.protocol, settings, now) {
        let (kind, position) = (half.kind, half.position as u32);
        tables.remove_flow(&peer_key);
        tables.remove_flow(key);
        if kind == FlowKind::Outbound as u8 {
            let remote = if key.side == Side::Egress as u8 { key } else { &peer_key };
            release(tables, remote.target, remote.target_port, key.protocol, position);
        }
        return false;
    }
    let mut believed = true;
    if let Some(peer) = peer {
        // Only the side that opened it may open it again.
        let outbound = half.kind == FlowKind::Outbound as u8;
        let opener = if outbound { Side::Egress } else { Side::Ingress };
        if headers.opens() && key.side == opener as u8 && flow::closing(half, peer) {
            half.marks.set(half.marks.get() & mark::KEPT);
            peer.marks.set(peer.marks.get() & mark::KEPT);
            tables.count(Event::Reopened);
        }
        if headers.flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
            believed = flow::believes(half, peer, headers);
            if believed {
                peer.marks.set(peer.marks.get() | mark::ENDED);
            } else {
                tables.count(Event::EndDoubted);
            }
        }
    }
    flow::see(half, headers, now, believed);
    true
}

/// Gives a position back to its destination's row, if it has one.
#[inline(always)]
pub fn release<T: AgentTables<V4>>(
    tables: &T,
    remote: Address,
    port: [u8; 2],
    protocol: u8,
    position: u32,
) {
    let Some(settings) = tables.settings() else { return };
    let fingerprint = fingerprint(settings, remote, port, protocol);
    let row = watched(tables, fingerprint);
    if row != 0
        && let Some(row) = tables.positions(row)
    {
        row.release(tables, position);
    }
}

/// What stands for a destination in its row of positions. Never zero, which means a free row.
#[inline(always)]
pub fn fingerprint(
    settings: &AgentSettings<Address>,
    remote: Address,
    port: [u8; 2],
    protocol: u8,
) -> u64 {
    let [a, b, c, d] = remote;
    let word = u64::from_le_bytes([a, b, c, d, port[0], port[1], protocol, 1]);
    hash::secret(settings.seed, [word, 0]) | 1
}

/// The change to a packet that leaves under another address.
#[inline(always)]
fn change<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
    address: Address,
    port: [u8; 2],
    settings: &AgentSettings<Address>,
) -> Verdict<V4> {
    Verdict::Rewrite(Rewrite {
        unwrap: false,
        end: End::Source,
        address: Change { old: headers.source, new: address },
        port: Change { old: headers.source_port, new: port },
        at: Places::ipv4(headers, End::Source, 0),
        segment: lower_segment(packet, headers, settings.mss_max),
        event: Event::TranslatedOut,
    })
}

/// The new maximum segment size of a SYN that asks for more than `max`: what comes back to it is
/// wrapped, and needs room for that.
#[inline(always)]
fn lower_segment<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
    max: u16,
) -> Option<verdict::Segment> {
    if headers.transport != Transport::Tcp || headers.flags & tcp_flag::SYN == 0 || max == 0 {
        return None;
    }
    let found = packet::maximum_segment(packet, headers)?;
    (found.size > max).then(|| verdict::Segment {
        at: found.at as u16,
        size: Change { old: found.size.to_be_bytes(), new: max.to_be_bytes() },
    })
}

/// Opens a flow: finds a port that is free for the destination and records both directions.
#[inline(always)]
fn open<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
    index: u8,
    policy: &Policy,
    now: u64,
) -> Way {
    let key = key(headers);
    if settings.flags & agent_flag::QUOTAS != 0 && is_used_up(tables, &key.source) {
        return Way::refused(Drop::QuotaExceeded, index);
    }
    let fingerprint = fingerprint(settings, key.target, key.target_port, key.protocol);
    let [a, b, c, d] = key.source;
    let mut kept = 0;
    if policy.flags & policy_flag::TCP_RESET != 0 {
        kept |= mark::TCP_RESET;
    }
    if policy.flags & policy_flag::GATEWAY_TIMERS != 0 {
        kept |= mark::GATEWAY_TIMERS;
    }
    let random = hash::secret(
        settings.seed,
        [
            u64::from_le_bytes([a, b, c, d, key.source_port[0], key.source_port[1], 0, 0]),
            fingerprint,
        ],
    );
    let wanted = Wanted {
        key,
        reverse: FlowKey::default(),
        other: FlowKey::default(),
        idle: match headers.protocol {
            protocol::TCP => policy.idle_tcp,
            protocol::ICMP => policy.idle_icmp,
            _ => policy.idle_udp,
        },
        policy: index,
        kept,
        now: Ticks::from_nanoseconds(now),
        // Another one whenever the same flow is opened.
        generation: (random >> 32) as u32 ^ Ticks::from_nanoseconds(now).0,
        random,
        collided: false,
        place: Place { address: [0; 4], port: [0; 2], position: 0 },
    };
    if policy.segments == 0 || policy.blocks[0].count == 0 {
        return Way::refused(Drop::NoLease, index);
    }
    let row = watched(tables, fingerprint);
    let is_small = policy.blocks[0].count <= SMALL_PORTS / BLOCK_PORTS as u16;
    let search = Search {
        row,
        fingerprint,
        segment: 0,
        tries: 0,
        collisions: if is_small { COLLISIONS_MAX - 1 } else { 0 },
        wanted,
        end: Outcome::Looking,
    };
    let (end, found) = tables.repeat(STEPS, search);
    match end {
        Outcome::Found => {}
        Outcome::TableFull => return Way::refused(Drop::FlowTableFull, index),
        Outcome::Looking | Outcome::Full if headers.transport == Transport::Other => {
            return Way::dropped(Drop::ProtocolInUse);
        }
        Outcome::Looking | Outcome::Full => {
            return Way::refused(Drop::PortsExhausted, index);
        }
    }
    let forward = wanted.half(found.address, found.port, found.position);
    flow::see(&forward, headers, wanted.now, true);
    match tables.insert_flow(&key, forward) {
        Ok(()) => {
            tables.count(Event::FlowOut);
            if settings.flags & agent_flag::QUOTAS != 0 {
                use_up(tables, &key.source);
            }
            Way::leave_as(found.address, found.port)
        }
        Err(problem) => {
            // The reverse entry must not stand alone.
            tables.remove_flow(&key.peer(found.address, found.port));
            release(tables, key.target, key.target_port, key.protocol, found.position);
            match (problem, tables.flow(&key)) {
                // Another CPU opened the same flow in the same moment: its port it is.
                (NotInserted::Exists, Some(other)) => Way::leave_as(other.address, other.port),
                (NotInserted::Exists, None) => Way::dropped(Drop::NoFlow),
                (NotInserted::Full, _) => Way::refused(Drop::FlowTableFull, index),
            }
        }
    }
}

/// Whether the source or its namespace has as many flows as it may.
#[inline(always)]
fn is_used_up<T: AgentTables<V4>>(tables: &T, source: &Address) -> bool {
    let Some(quota) = tables.quota(source) else { return false };
    [quota.pod, quota.namespace].into_iter().any(|row| {
        row != 0
            && tables
                .allowance(row)
                .is_some_and(|allowance| allowance.used() >= allowance.limit.get())
    })
}

/// Counts a flow that the source has opened.
#[inline(always)]
fn use_up<T: AgentTables<V4>>(tables: &T, source: &Address) {
    let Some(quota) = tables.quota(source) else { return };
    for row in [quota.pod, quota.namespace] {
        if row != 0
            && let Some(allowance) = tables.allowance(row)
        {
            tables.add_one(&allowance.opened);
        }
    }
}

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
    address: Address,
    port: [u8; 2],
    position: u32,
}

impl Wanted {
    #[inline(always)]
    fn half(&self, address: Address, port: [u8; 2], position: u32) -> Flow<Address> {
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

    #[inline(always)]
    fn has_ports(&self) -> bool {
        matches!(self.key.protocol, protocol::TCP | protocol::UDP | protocol::ICMP)
    }

    #[inline(always)]
    fn reverse_half(&self, position: u32) -> Flow<Address> {
        self.half(self.key.source, self.key.source_port, position)
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
        let port = if self.has_ports() { port.to_be_bytes() } else { [0; 2] };
        self.reverse = self.key.peer(address, port);
        match tables.insert_flow(&self.reverse, self.reverse_half(position)) {
            Ok(()) => {
                self.place = Place { address, port, position };
                return Outcome::Found;
            }
            Err(NotInserted::Full) => return Outcome::TableFull,
            Err(NotInserted::Exists) => {}
        }
        tables.count(Event::PortCollision);
        self.collided = true;
        // What stands there may be over; then its port is free.
        let Some(settings) = tables.settings() else { return Outcome::Full };
        let Some(half) = tables.flow(&self.reverse) else { return Outcome::Looking };
        self.other = self.reverse.peer(half.address, half.port);
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
struct Search {
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
    /// The flow table has no room.
    TableFull,
}

impl Search {
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
                return Outcome::Found;
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
