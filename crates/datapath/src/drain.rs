//! Where a flow of a load-balancing rule is while nodes come and go.
//!
//! New flows go by the rule's Maglev table, those that are there stay. Where a node has lost a part
//! of the hash space not long ago, the rule has a [`Previous`] row for that part: these nodes may
//! have flows of it too. A connection that begins there is noted; one without a note is older, or
//! was noted by another mux, or its note has made room. So a packet takes along a second node where
//! its flow can be, and a node that does not have it passes the packet on.

use crate::{
    V4,
    limits::{NOTES_ROWS, PREVIOUS_MAX},
    mux::MuxTables,
    packet::{Headers, Transport},
    tables::{Note, Owners, Previous, Rule, owner},
};

/// Two nodes, to be tried in this order: [`owner::NONE`] first where nobody serves the rule,
/// and second where there is no other.
// VERIFIER: an array, since a function of a kernel program gives back a number but not two.
pub type Candidates = [u16; 2];

/// What a packet says of its flow's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Age {
    /// It begins a connection.
    New,
    /// It belongs to a connection that has begun.
    Begun,
    /// Nothing: a datagram.
    Unknown,
}

impl Age {
    /// What a packet with these headers says.
    #[inline(always)]
    pub fn of(headers: &Headers<V4>) -> Age {
        match headers.transport {
            Transport::Tcp if headers.opens() => Age::New,
            Transport::Tcp => Age::Begun,
            _ => Age::Unknown,
        }
    }
}

/// The nodes where the flow of a packet may be. `current` gets new ones; `place` says which part of
/// the hash space the flow has, `flow` tells it apart from others there.
// VERIFIER: a function of its own, out of other packets' way, that takes numbers: what it took by
// reference would stand on the stack for every packet.
#[inline(never)]
pub fn candidates<T: MuxTables>(
    tables: &T,
    rule: &Rule,
    current: u16,
    place: u64,
    flow: u64,
    age: Age,
) -> Candidates {
    let entry = crate::hash::below((place >> 32) as u32, rule.previous_count);
    let row = tables.maglev(rule.previous_first / 4 + entry / 2);
    let [oldest, second] = row.map_or([owner::NONE; PREVIOUS_MAX], |row| half(row, entry));
    if oldest == owner::NONE {
        return [current, owner::NONE];
    }
    let note = Note { check: (flow >> 16) as u32, node: current, reserved: 0 };
    let row = flow as u32 % NOTES_ROWS;
    if age == Age::New {
        if current != owner::NONE {
            tables.note(row, note);
        }
        return [current, owner::NONE];
    }
    let noted = tables.noted(row).filter(|noted| age == Age::Begun && noted.check == note.check);
    let noted = noted.map_or(owner::NONE, |noted| noted.node);
    // A note may be of other times, or another connection's: only who may have the flow counts.
    let is_known = noted == current || noted == second;
    if is_known && noted != oldest && noted != owner::NONE {
        return [noted, oldest];
    }
    if oldest != current && current != owner::NONE {
        return [oldest, current];
    }
    // A datagram that nobody has a flow for is taken by the one that is asked last.
    match age == Age::Begun || current == owner::NONE {
        true => [oldest, second],
        false => [second, current],
    }
}

/// The row of `entry`, of the two that share a row.
#[inline(always)]
fn half(row: &Owners, entry: u32) -> Previous {
    let [a, b, c, d] = row.0;
    if entry & 1 == 0 { [a, b] } else { [c, d] }
}
