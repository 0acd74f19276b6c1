//! Which nodes may have older connections of a load-balancing rule than the one that gets the new
//! ones. A node that loses a part of the hash space keeps the connections of that part until they
//! end, for as long as the cluster's drain time.

use std::collections::{BTreeMap, BTreeSet};

use datapath::limits::PREVIOUS_MAX;
use datapath::tables::{Previous, owner};

use crate::lease::Millis;

/// Until when each node of a rule, by its index, may have older connections.
pub type Deadlines = BTreeMap<u16, Millis>;

/// What the tables of a rule say, part by part of the hash space; numbers of parts are powers of
/// two.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parts {
    /// Who gets new connections; empty: nobody.
    pub current: Vec<u16>,
    /// Who may have older connections; empty: nobody.
    pub previous: Vec<Previous>,
    /// Until when.
    pub deadlines: Deadlines,
}

impl Parts {
    /// The tables after these, when `current` gets the new connections from `now` on, nodes drain
    /// `for_seconds`, and `keeps` says which nodes still have connections at all.
    pub fn followed_by(
        &self,
        current: &[u16],
        now: Millis,
        for_seconds: u32,
        keeps: impl Fn(u16) -> bool,
    ) -> Parts {
        let parts = self.current.len().max(self.previous.len()).max(current.len());
        let at = |run: &[u16], part: usize| {
            let place = part.checked_mul(run.len()).and_then(|place| place.checked_div(parts));
            place.and_then(|place| run.get(place)).copied().unwrap_or(owner::NONE)
        };
        let end = now.plus_seconds(for_seconds.into());
        let lost: BTreeSet<u16> = (0..parts)
            .map(|part| (at(&self.current, part), at(current, part)))
            .filter(|(old, new)| old != new)
            .map(|(old, _)| old)
            .collect();
        let deadline = |node: u16| match self.deadlines.get(&node) {
            Some(deadline) if !lost.contains(&node) => *deadline,
            _ => end,
        };
        let mut next = Parts { current: current.to_vec(), ..Parts::default() };
        let mut may_have = BTreeMap::new();
        let mut may = |node: u16| {
            *may_have
                .entry(node)
                .or_insert_with(|| node != owner::NONE && keeps(node) && now < deadline(node))
        };
        for part in 0..parts {
            let (old, new) = (at(&self.current, part), at(current, part));
            let [oldest, second] = match self.previous.len() {
                0 => [owner::NONE; PREVIOUS_MAX],
                count => self.previous[part * count / parts],
            };
            let oldest = if oldest == owner::NONE { old } else { oldest };
            let is_there = oldest == new || may(oldest);
            let oldest = if is_there { oldest } else { new };
            // Of two that came in between, the later one has more of its connections left.
            let mut between = [old, second]
                .into_iter()
                .filter(|node| *node != oldest && *node != new && may(*node));
            let row = match (oldest, between.next()) {
                (owner::NONE, node) => [node.unwrap_or(owner::NONE), owner::NONE],
                (oldest, None) if oldest == new => [owner::NONE; PREVIOUS_MAX],
                (oldest, second) => [oldest, second.unwrap_or(owner::NONE)],
            };
            let others = row.into_iter().filter(|node| *node != owner::NONE && *node != new);
            next.deadlines.extend(others.map(|node| (node, deadline(node))));
            next.previous.push(row);
        }
        if next.deadlines.is_empty() {
            next.previous.clear();
        }
        next
    }
}
