//! Fragments: only a datagram's first one has ports, so what it is translated to is kept for those
//! that follow. One that comes before the first is dropped.

use crate::{
    Family, V4,
    agent::AgentTables,
    packet::Headers,
    tables::{Fragment, FragmentKey, Side, Ticks},
};

type Address = <V4 as Family>::Address;

/// How long what a first fragment has shown is good for. Those that belong together come within
/// milliseconds; an identification may come again within seconds.
pub const FRAGMENT_LIFE: Ticks = Ticks::from_seconds(5);

/// The key of a fragment's datagram, as one hook sees it.
#[inline(always)]
pub(crate) fn key(headers: &Headers<V4>, side: Side) -> FragmentKey<Address> {
    FragmentKey {
        source: headers.source,
        target: headers.target,
        id: headers.id,
        protocol: headers.protocol,
        side: side as u8,
    }
}

/// Keeps to which address a first fragment is translated.
// VERIFIER: a function of its own: its key and row have no room beside a verdict.
#[inline(never)]
pub(crate) fn keep<T: AgentTables<V4>>(
    tables: &T,
    headers: &Headers<V4>,
    side: Side,
    address: Address,
    now: Ticks,
) {
    tables.keep_fragment(&key(headers, side), Fragment { address, seen: now.0 });
}

/// The address to which a later fragment is translated; nothing where its first one is unknown.
#[inline(always)]
pub(crate) fn address<T: AgentTables<V4>>(
    tables: &T,
    headers: &Headers<V4>,
    side: Side,
    now: Ticks,
) -> Option<Address> {
    fresh(tables.fragment(&key(headers, side))?, now)
}

/// The address that a first fragment has shown, while it is good.
#[inline(always)]
pub(crate) fn fresh(fragment: &Fragment<Address>, now: Ticks) -> Option<Address> {
    // A clock reading from another CPU may lie a little ahead.
    let age = now.since(Ticks(fragment.seen)).0;
    (age <= FRAGMENT_LIFE.0 || age > u32::MAX / 2).then_some(fragment.address)
}
