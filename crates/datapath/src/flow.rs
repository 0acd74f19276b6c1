//! When a flow is over, and what its two halves remember of it.

use crate::{
    packet::{Headers, Transport, tcp_flag},
    tables::{Flow, Ticks, mark},
    {Family, protocol},
};

/// After a FIN from either side (Azure's 240 s; RFC 7857 asks for at least 4 minutes).
pub const CLOSING: Ticks = Ticks::from_seconds(240);
/// After an RST from either side. Deviates from RFC 7857, as Azure does.
pub const RESET: Ticks = Ticks::from_seconds(15);
/// A connection whose handshake is not complete (RFC 5382, REQ-5: at least 4 minutes).
pub const HALF_OPEN: Ticks = Ticks::from_seconds(240);
/// How long a half may stand alone: the other one is being written.
pub const ALONE: Ticks = Ticks::from_seconds(2);

/// Records a packet in its half: the time, and for TCP what its flags and numbers say.
#[inline(always)]
pub fn see<F: Family>(half: &Flow<F::Address>, headers: &Headers<F>, now: Ticks) {
    half.last_seen.set(now.0);
    if headers.transport != Transport::Tcp {
        return;
    }
    let seen = marks_of(headers.flags);
    let marks = half.marks.get();
    if marks | seen != marks {
        half.marks.set(marks | seen);
    }
    half.sequence.set(headers.sequence.wrapping_add(headers.sequence_length()));
    half.acknowledgement.set(headers.acknowledgement);
}

/// The marks that a packet with these TCP flags leaves.
#[inline(always)]
pub const fn marks_of(flags: u8) -> u32 {
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
    marks
}

/// Whether a flow is over, judged by both its halves; `peer` is what stands at the other half's
/// key, if anything.
///
/// A half without its peer is over as soon as the peer cannot be on its way any more.
#[inline(always)]
pub fn expired<A>(half: &Flow<A>, peer: Option<&Flow<A>>, protocol: u8, now: Ticks) -> bool {
    let age = age(half, now);
    let peer = match peer {
        Some(peer) if peer.generation == half.generation => peer,
        _ => return age.0 > ALONE.0,
    };
    let age = Ticks(age.0.min(self::age(peer, now).0));
    let ours = half.marks.get();
    let theirs = peer.marks.get();
    age.0 > limit(ours, theirs, half.idle, protocol).0
}

/// How long a flow may be silent in the state that its halves' marks show.
///
/// A handshake is complete when both sides have sent a SYN and one of them something after it: the
/// side that opened owes the last acknowledgement, the other one may stay silent for long.
#[inline(always)]
pub const fn limit(ours: u32, theirs: u32, idle: u32, protocol: u8) -> Ticks {
    if protocol != protocol::TCP {
        return Ticks(idle);
    }
    let either = ours | theirs;
    if either & mark::RST != 0 {
        RESET
    } else if either & mark::FIN != 0 {
        CLOSING
    } else if either & mark::SYN != 0
        && !(ours & theirs & mark::SYN != 0 && either & mark::DATA != 0)
    {
        HALF_OPEN
    } else {
        Ticks(idle)
    }
}

/// Whether a half on its own looks over, so that its peer must be asked. Of a flow that is over, at
/// least one half does.
#[inline(always)]
pub fn looks_idle<A>(half: &Flow<A>, now: Ticks) -> bool {
    let age = age(half, now).0;
    let marks = half.marks.get();
    // The shortest limit of all is RESET; short of it no question arises.
    age > RESET.0
        && (age > half.idle
            || marks & (mark::FIN | mark::RST) != 0
            || (marks & mark::SYN != 0 && age > HALF_OPEN.0))
}

/// Time since the half's last packet. A clock reading from another CPU may lie a little ahead.
#[inline(always)]
fn age<A>(half: &Flow<A>, now: Ticks) -> Ticks {
    let age = now.since(Ticks(half.last_seen.get()));
    if age.0 > u32::MAX / 2 { Ticks(0) } else { age }
}

/// Whether either half has seen the connection's end.
#[inline(always)]
pub fn closing<A>(half: &Flow<A>, peer: Option<&Flow<A>>) -> bool {
    let peer = peer.map_or(0, |peer| peer.marks.get());
    (half.marks.get() | peer) & (mark::FIN | mark::RST) != 0
}
