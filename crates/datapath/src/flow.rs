//! Whose flow a packet is, when a flow is over, and what its two halves remember of it.

use crate::{
    Event, Family, Port, V4,
    agent::{AgentTables, NotInserted, watched},
    packet::{Headers, Transport, tcp_flag},
    positions::fingerprint,
    protocol, quota,
    tables::{AgentSettings, Flow, FlowKey, FlowKind, Side, Ticks, Timers, agent_flag, mark},
};

type Address = <V4 as Family>::Address;

/// How long a half may stand alone: the other one is being written.
pub const ALONE: Ticks = Ticks::from_seconds(2);
/// How far one packet can move a sequence or acknowledgement number ahead; what leaps further is
/// not of this connection. Windows are smaller nearly everywhere (Linux: 6 MiB by default).
pub const LEAP_MAX: u32 = 1 << 24;
/// Data that may be on its way to an end that has not acknowledged it, when its peer resets the
/// connection.
pub const UNACKNOWLEDGED_MAX: u32 = 1 << 20;

/// Records a packet in its half: the time, and for TCP what its flags and numbers say. An end that
/// is not `believed` leaves no trace.
#[inline(always)]
pub fn see<F: Family>(half: &Flow<F::Address>, headers: &Headers<F>, now: Ticks, believed: bool) {
    if headers.transport != Transport::Tcp {
        half.last_seen.set(now.0);
        return;
    }
    if !believed {
        return;
    }
    half.last_seen.set(now.0);
    let seen = marks_of(headers.flags);
    let marks = half.marks.get();
    if marks | seen != marks {
        half.marks.set(marks | seen);
    }
    if headers.flags & tcp_flag::RST != 0 {
        return;
    }
    let end = headers.sequence.wrapping_add(headers.sequence_length());
    let is_first =
        marks & mark::DATA == 0 && (headers.flags & tcp_flag::SYN != 0 || marks & mark::SYN == 0);
    if is_first || end.wrapping_sub(half.sequence.get()).wrapping_sub(1) < LEAP_MAX {
        half.sequence.set(end);
    }
    if headers.flags & tcp_flag::ACK != 0 {
        let acknowledgement = headers.acknowledgement;
        let leap = acknowledgement.wrapping_sub(half.acknowledgement.get()).wrapping_sub(1);
        if marks & mark::ACK == 0 || leap < LEAP_MAX {
            half.acknowledgement.set(acknowledgement);
        }
    }
}

/// What the packet that opens a flow leaves in its half.
pub(crate) struct First {
    /// [`Flow::marks`].
    pub(crate) marks: u16,
    /// [`Flow::sequence`].
    pub(crate) sequence: u32,
}

/// What the packet that opens a flow leaves in its half, as [`see`] would have it.
#[inline(always)]
pub(crate) fn first(headers: &Headers<V4>) -> First {
    if headers.transport != Transport::Tcp {
        return First { marks: 0, sequence: 0 };
    }
    First {
        marks: marks_of(headers.flags),
        sequence: headers.sequence.wrapping_add(headers.sequence_length()),
    }
}

/// Whether a FIN or RST is one that the end which it goes to would accept, as far as it can be told
/// from here, so that nobody ends a flow by guessing.
///
/// An RST must bear the very number that the other end expects next or the end of what was sent
/// to it (RFC 5961, 3.2), or answer a SYN; a FIN must be near what was sent.
#[inline(always)]
pub fn believes<F: Family>(
    half: &Flow<F::Address>,
    peer: &Flow<F::Address>,
    headers: &Headers<F>,
) -> bool {
    let marks = half.marks.get();
    if headers.flags & tcp_flag::RST == 0 {
        let ahead = headers.sequence.wrapping_sub(half.sequence.get());
        return marks & (mark::SYN | mark::DATA) == 0
            || ahead.wrapping_add(UNACKNOWLEDGED_MAX) < 2 * UNACKNOWLEDGED_MAX;
    }
    let theirs = peer.marks.get();
    let expected = peer.acknowledgement.get();
    if theirs & mark::ACK != 0 && headers.sequence == expected {
        return true;
    }
    if marks & (mark::SYN | mark::DATA) == 0 {
        let answers = headers.flags & tcp_flag::ACK != 0;
        return answers && headers.acknowledgement == peer.sequence.get();
    }
    headers.sequence == half.sequence.get()
        && (theirs & mark::ACK == 0 || headers.sequence.wrapping_sub(expected) < UNACKNOWLEDGED_MAX)
}

/// The marks that a packet with these TCP flags leaves.
#[inline(always)]
pub const fn marks_of(flags: u8) -> u16 {
    let mut marks = 0;
    if flags & tcp_flag::SYN != 0 {
        marks |= mark::SYN;
    }
    if flags & tcp_flag::FIN != 0 {
        marks |= mark::FIN;
    }
    if flags & tcp_flag::RST != 0 {
        marks |= mark::RST;
    }
    if flags & (tcp_flag::SYN | tcp_flag::RST) == 0 {
        marks |= mark::DATA;
    }
    if flags & (tcp_flag::ACK | tcp_flag::RST) == tcp_flag::ACK {
        marks |= mark::ACK;
    }
    marks
}

/// Whether a flow is over, judged by both its halves; `peer` is what stands at the other half's
/// key, if anything.
///
/// A half without its peer is over as soon as the peer cannot be on its way any more.
#[inline(always)]
pub fn expired<A>(
    half: &Flow<A>,
    peer: Option<&Flow<A>>,
    protocol: u8,
    settings: &AgentSettings<A>,
    now: Ticks,
) -> bool {
    let age = age(half, now);
    let peer = match peer {
        Some(peer) if peer.generation == half.generation => peer,
        _ => return age.0 > ALONE.0,
    };
    let age = Ticks(age.0.min(self::age(peer, now).0));
    let ours = half.marks.get();
    let theirs = peer.marks.get();
    let timers = settings.timers(ours);
    let limit = limit(ours, theirs, half.idle, protocol, timers);
    age.0 > if is_short(ours | theirs, settings) { timers.reset } else { limit.0 }
}

/// Whether a flow with these marks has to make room soon: nobody has answered it, and the table is
/// nearly full.
#[inline(always)]
fn is_short<A>(marks: u16, settings: &AgentSettings<A>) -> bool {
    settings.flags & agent_flag::SHORT != 0 && marks & mark::UNANSWERED != 0
}

/// How far a TCP connection has come, as its halves' marks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The handshake is not complete.
    HalfOpen,
    /// Data can go both ways.
    Established,
    /// A FIN was seen.
    Closing,
    /// An RST was seen.
    Reset,
}

/// The state that two halves with these marks show.
///
/// A handshake is complete when both sides have sent a SYN and one of them something after it: the
/// side that opened owes the last acknowledgement, the other one may stay silent for long. Where
/// both have opened at once, both acknowledge by a SYN (RFC 9293, 3.5).
/// Connections whose SYN was not seen are taken as established.
#[inline(always)]
pub const fn state(ours: u16, theirs: u16) -> State {
    let either = ours | theirs;
    if either & mark::RST != 0 {
        State::Reset
    } else if either & mark::FIN != 0 {
        State::Closing
    } else if either & mark::SYN != 0
        && !(ours & theirs & mark::SYN != 0
            && (either & mark::DATA != 0 || ours & theirs & mark::ACK != 0))
    {
        State::HalfOpen
    } else {
        State::Established
    }
}

/// How long a flow may be silent.
#[inline(always)]
pub const fn limit(ours: u16, theirs: u16, idle: u32, protocol: u8, timers: &Timers) -> Ticks {
    if protocol != protocol::TCP {
        return Ticks(idle);
    }
    Ticks(match state(ours, theirs) {
        State::HalfOpen => timers.half_open,
        State::Established => idle,
        State::Closing => timers.closing,
        State::Reset => timers.reset,
    })
}

/// Whether a half on its own looks over, so that its peer must be asked. Of a flow that is over,
/// at least one half does.
#[inline(always)]
pub fn looks_idle<A>(half: &Flow<A>, settings: &AgentSettings<A>, now: Ticks) -> bool {
    let age = age(half, now).0;
    let marks = half.marks.get();
    let timers = settings.timers(marks);
    age > timers.reset
        && (age > half.idle
            || is_short(marks, settings)
            || marks & (mark::FIN | mark::RST | mark::ENDED) != 0
            || (marks & mark::SYN != 0 && age > timers.half_open))
}

/// Whether an RST to both ends of a flow that is over would be believed: it is an established TCP
/// connection, and each end has said what it expects next ([`Flow::acknowledgement`]).
pub fn can_be_reset<A>(half: &Flow<A>, peer: &Flow<A>, protocol: u8) -> bool {
    let (ours, theirs) = (half.marks.get(), peer.marks.get());
    protocol == protocol::TCP
        && ours & theirs & mark::ACK != 0
        && matches!(state(ours, theirs), State::Established)
}

/// Time since the half's last packet. A clock reading from another CPU may lie a little ahead.
#[inline(always)]
pub fn age<A>(half: &Flow<A>, now: Ticks) -> Ticks {
    let age = now.since(Ticks(half.last_seen.get()));
    if age.0 > u32::MAX / 2 { Ticks(0) } else { age }
}

/// Whether a connection was reset, so that neither end knows of it any more.
#[inline(always)]
pub(crate) fn is_reset<A>(half: &Flow<A>, peer: &Flow<A>) -> bool {
    (half.marks.get() | peer.marks.get()) & mark::RST != 0
}

/// Whether either half has seen the connection's end.
#[inline(always)]
pub fn closing<A>(half: &Flow<A>, peer: &Flow<A>) -> bool {
    (half.marks.get() | peer.marks.get()) & (mark::FIN | mark::RST) != 0
}

/// Whether the sender of a late TCP packet, of no flow, is told by RST (RFC 9293, 3.5.2): not if
/// it tries to connect or sent an RST itself.
#[inline(always)]
pub(crate) fn is_answered(headers: &Headers<V4>) -> bool {
    headers.flags & (tcp_flag::SYN | tcp_flag::RST) == 0
}

/// The key under which a packet's flow stands at one hook.
#[inline(always)]
pub(crate) fn key(headers: &Headers<V4>, side: Side) -> FlowKey<Address> {
    // An echo's identifier stands in the port of the inside.
    let echo = headers.protocol == protocol::ICMP;
    let inward = matches!(side, Side::Ingress);
    FlowKey {
        source: headers.source,
        target: headers.target,
        source_port: if echo && inward { Port::NONE } else { headers.source_port },
        target_port: if echo && !inward { Port::NONE } else { headers.target_port },
        protocol: headers.protocol,
        side: side as u8,
        reserved: [0; 2],
    }
}

/// The half at a key, confirmed or not.
#[inline(always)]
pub(crate) fn half<'a, T: AgentTables<V4>>(
    tables: &'a T,
    key: &FlowKey<Address>,
) -> Option<&'a Flow<Address>> {
    tables.flow(key).or_else(|| tables.pending(key))
}

/// The packet's flow, if it has one; its half has seen the packet.
#[inline(always)]
pub(crate) fn of_packet<'a, T: AgentTables<V4>>(
    tables: &'a T,
    settings: &AgentSettings<Address>,
    key: &FlowKey<Address>,
    headers: &Headers<V4>,
    now: Ticks,
) -> Option<&'a Flow<Address>> {
    let found = tables.flow(key);
    // What has no ports is no Service's.
    let may_pend = matches!(headers.transport, Transport::Tcp | Transport::Udp);
    let half = match found {
        Some(half) => half,
        None if may_pend => tables.pending(key)?,
        None => return None,
    };
    if meets(tables, settings, key, half, headers, now) { Some(half) } else { None }
}

/// Makes a flow of one that came in and whose opener has heard the answer: it acknowledges the very
/// number that the pod has sent, or for UDP sends again.
///
/// Nobody can fill the flow table by packets with forged sources: those never hear it.
#[inline(always)]
pub(crate) fn confirm<T: AgentTables<V4>>(
    tables: &T,
    key: &FlowKey<Address>,
    half: &Flow<Address>,
    headers: &Headers<V4>,
) {
    let peer_key = key.peer(half);
    let Some(peer) = tables.pending(&peer_key) else { return };
    let hears = if headers.transport == Transport::Tcp {
        const ASKED: u8 = tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK;
        headers.flags & ASKED == tcp_flag::ACK
            && peer.marks.get() & mark::SYN != 0
            && headers.acknowledgement == peer.sequence.get()
    } else {
        peer.marks.get() & mark::DATA != 0
    };
    // A row that made room and is another flow's by now has another generation.
    if !hears || peer.generation != half.generation || quota::is_inbound_used_up(tables) {
        return;
    }
    // Where there is no room it stays what it is.
    if insert_confirmed(tables, &peer_key, peer).is_err() {
        return;
    }
    if insert_confirmed(tables, key, half).is_err() {
        tables.remove_flow(&peer_key);
        return;
    }
    tables.remove_pending(&peer_key);
    tables.remove_pending(key);
    quota::use_up_inbound(tables);
    tables.count(Event::FlowConfirmed);
}

#[inline(always)]
fn insert_confirmed<T: AgentTables<V4>>(
    tables: &T,
    key: &FlowKey<Address>,
    half: &Flow<Address>,
) -> Result<(), NotInserted> {
    let half = half.clone();
    half.marks.set(half.marks.get() & !mark::PENDING);
    tables.insert_flow(key, half)
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
    let is_plain = headers.flags & ASKED == 0 && half.marks.get() & mark::UNANSWERED == 0;
    if is_plain && !looks_idle(half, settings, now) {
        see(half, headers, now, true);
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
    let peer = self::half(tables, &key.peer(half));
    if expired(half, peer, key.protocol, settings, now) {
        remove(tables, key, half);
        return false;
    }
    if half.marks.get() & mark::UNANSWERED != 0 {
        half.marks.set(half.marks.get() & !mark::UNANSWERED);
        quota::answered(tables, &half.address);
    }
    let mut believed = true;
    if let Some(peer) = peer {
        // Only the side that opened it may open it again.
        let outbound = half.kind == FlowKind::Outbound as u8;
        let opener = if outbound { Side::Egress } else { Side::Ingress };
        if headers.opens() && key.side == opener as u8 && closing(half, peer) {
            half.marks.set(half.marks.get() & mark::KEPT);
            peer.marks.set(peer.marks.get() & mark::KEPT);
            tables.count(Event::Reopened);
        }
        if headers.flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
            believed = believes(half, peer, headers);
            if believed {
                peer.marks.set(peer.marks.get() | mark::ENDED);
            } else {
                tables.count(Event::EndDoubted);
            }
        }
    }
    see(half, headers, now, believed);
    true
}

/// Removes a flow, both halves, and gives its port back.
#[inline(always)]
pub(crate) fn remove<T: AgentTables<V4>>(tables: &T, key: &FlowKey<Address>, half: &Flow<Address>) {
    remove_both(tables, key, &key.peer(half), half);
}

/// The same, where the other half's key is known.
#[inline(always)]
pub(crate) fn remove_both<T: AgentTables<V4>>(
    tables: &T,
    key: &FlowKey<Address>,
    peer_key: &FlowKey<Address>,
    half: &Flow<Address>,
) {
    let (kind, position) = (half.kind, half.position as u32);
    tables.remove_flow(peer_key);
    tables.remove_flow(key);
    if kind != FlowKind::Outbound as u8 {
        tables.remove_pending(peer_key);
        tables.remove_pending(key);
    } else {
        let remote = if key.side == Side::Egress as u8 { key } else { peer_key };
        release(tables, remote.target, remote.target_port, key.protocol, position);
    }
}

/// Gives a position back to its destination's row, if it has one.
#[inline(always)]
pub fn release<T: AgentTables<V4>>(
    tables: &T,
    remote: Address,
    port: Port,
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
