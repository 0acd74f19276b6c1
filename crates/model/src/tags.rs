//! The keys of the tags that wrapped packets bear ([`datapath::gue::tag`]): who makes them, and in
//! which order they come into use and go, so that no packet is dropped on the way.
//!
//! There are always two keys, in two slots. Muxes make tags with one of them; nodes, and muxes
//! that fragments are handed over to, take both. An order ([`TagOrder`]) follows another only when
//! all agents and muxes have the one before and what was under way has arrived:
//!
//! ```text
//!   Off:       (no tags) <------------------- (tags, not asked for) <---------+
//!                  |                                  |   ^                   | at once
//!   Required:      +----------------------------------+   |                   |
//!                                                     v   |                   |
//!              the key in the other slot is new <---- (tags, asked for) ------+
//!                  |                                  ^
//!                  | life of a key                    |
//!                  +--> the other slot is used -------+  then its old key is replaced
//! ```
//!
//! Only a key that nobody uses is ever replaced, so a row that is read while it is written is
//! as good as before or after.

use std::collections::BTreeMap;
use std::fmt;

use datapath::tables::TagKeys;

use crate::cluster::WrapAuthentication;
use crate::kubernetes::ObjectMeta;
use crate::lease::Millis;
use crate::objects::{DEFAULT, Object, Objects};
use crate::reconcile::Write;
use crate::wrap_keys::{TagKey, TagOrder, WrapKeys, WrapKeysData};

/// How long an order stands once everybody follows it: what was sent before has arrived by then.
pub const SETTLE_SECONDS: u64 = 3;

/// What an agent or a mux has of the keys: what its tables hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tags {
    /// Which order it is.
    pub epoch: u32,
    /// The keys, by slot.
    pub keys: HiddenKeys,
    /// Packets get a tag.
    pub tag: bool,
    /// With the second key.
    pub second: bool,
    /// Packets must bear one.
    pub check: bool,
}

/// Keys that no message shows.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct HiddenKeys(pub TagKeys);

impl fmt::Debug for HiddenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HiddenKeys(..)")
    }
}

impl Tags {
    /// What the tables should hold. An order that is gone, or older than the one they have, changes
    /// nothing: without keys every packet would be dropped.
    pub fn of(objects: &Objects, present: Tags) -> Tags {
        let Some(keys) = objects.wrap_keys.get(DEFAULT) else { return present };
        let TagOrder { epoch, tag, second, check, .. } = keys.spec;
        if epoch < present.epoch {
            return present;
        }
        let words = |key: &TagKey| {
            let (low, high) = key.0.split_at(8);
            let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            [word(low), word(high)]
        };
        let keys = HiddenKeys([words(&keys.data.first), words(&keys.data.second)]);
        Tags { epoch, keys, tag, second, check }
    }
}

/// The writes that the keys want `now`. `draw` gives numbers that nobody can foresee.
pub fn tag_writes(objects: &Objects, now: Millis, draw: [u8; 32]) -> Vec<Write> {
    let Some(network) = objects.cluster_networks.get(DEFAULT) else { return Vec::new() };
    let next = match objects.wrap_keys.get(DEFAULT) {
        Some(keys) => {
            let applied = applied(objects, now);
            let is_followed = applied.values().all(|epoch| *epoch >= keys.spec.epoch);
            let spec = &network.spec;
            let life = u64::from(spec.wrap_key_seconds);
            next(keys, spec.wrap_authentication, life, is_followed, now, draw)
        }
        None if network.spec.wrap_authentication == WrapAuthentication::Disabled => None,
        None => Some(first(objects, now, draw)),
    };
    next.map(|keys| Write::Put(Object::WrapKeys(keys))).into_iter().collect()
}

/// The order that each agent and mux follows which is waited for: every node that has ever said
/// something, for its programs go on when its agent is away; and every mux that may still receive
/// traffic.
fn applied(objects: &Objects, now: Millis) -> BTreeMap<&str, u32> {
    let nodes = objects.node_networks.iter();
    let nodes = nodes.filter(|(_, node)| node.status.heartbeat != Millis(0));
    let muxes = objects.mux_networks.iter().filter(|(_, mux)| mux.is_live(now));
    let nodes = nodes.map(|(name, node)| (name.as_str(), node.status.tag_epoch));
    nodes.chain(muxes.map(|(name, mux)| (name.as_str(), mux.status.tag_epoch))).collect()
}

/// Two keys where there are none. Tags are not asked for before everybody knows them.
fn first(objects: &Objects, now: Millis, draw: [u8; 32]) -> WrapKeys {
    let nodes = objects.node_networks.values().map(|node| node.status.tag_epoch);
    let muxes = objects.mux_networks.values().map(|mux| mux.status.tag_epoch);
    // Who has an order from before does not follow an older one.
    let newest = nodes.chain(muxes).max().unwrap_or(0);
    let (first, second) = (key(&draw[..16]), key(&draw[16..]));
    WrapKeys {
        metadata: ObjectMeta { name: DEFAULT.into(), ..ObjectMeta::default() },
        data: WrapKeysData { first, second },
        spec: TagOrder {
            epoch: newest + 1,
            tag: true,
            second: false,
            check: false,
            fresh: true,
            followed_since: None,
            in_use_since: now,
        },
    }
}

fn key(bytes: &[u8]) -> TagKey {
    let mut key = TagKey::default();
    key.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    key
}

/// The keys and the order after these ones, if it is time for it.
pub fn next(
    keys: &WrapKeys,
    wanted: WrapAuthentication,
    life_seconds: u64,
    is_followed: bool,
    now: Millis,
    draw: [u8; 32],
) -> Option<WrapKeys> {
    let mut after = keys.clone();
    let order = &mut after.spec;
    let followed_since = if is_followed { order.followed_since.or(Some(now)) } else { None };
    let has_settled = |since: Millis| now >= since.plus_seconds(SETTLE_SECONDS);
    let may_go_on = followed_since.is_some_and(has_settled);
    let is_wanted = wanted == WrapAuthentication::Required;
    match (order.tag, order.check) {
        // Who does not ask yet goes on not to ask: this waits for nobody.
        (_, true) if !is_wanted => order.check = false,
        _ if order.followed_since != followed_since => {
            order.followed_since = followed_since;
            return Some(after);
        }
        _ if !may_go_on => return None,
        (true, false) if !is_wanted => order.tag = false,
        (false, false) if is_wanted => order.tag = true,
        (true, false) => order.check = true,
        (true, true) if !order.fresh => {
            let other = if order.second { &mut after.data.first } else { &mut after.data.second };
            *other = key(&draw[..16]);
            order.fresh = true;
        }
        (true, true) if now >= order.in_use_since.plus_seconds(life_seconds) => {
            order.second = !order.second;
            order.fresh = false;
            order.in_use_since = now;
        }
        _ => return None,
    }
    order.epoch += 1;
    order.followed_since = None;
    Some(after)
}
