//! Where the connections of a mux's rules were until now.

use std::collections::{BTreeMap, BTreeSet};

use datapath::limits::PREVIOUS_MAX;
use datapath::tables::{Owners, Previous, Rule, RuleKey};

use super::Address;
use super::mux::{MuxTables, PER_ROW};
use crate::lease::Millis;
use crate::objects::Objects;
use crate::parts::{Deadlines, Parts};
use crate::places::Runs;
use crate::serving;

/// Parts of the hash space whose previous nodes share a row.
const PARTS_PER_ROW: usize = PER_ROW as usize / PREVIOUS_MAX;

/// A run of the `maglev` table: first entry, number of entries.
type Run = (u32, u32);
/// Where a rule's previous nodes stand, for how many parts, and until when.
type Place = (u32, u32, Deadlines);

/// What the tables have said, and what that means now.
pub(super) struct Past<'a> {
    present: &'a MuxTables,
    now: Millis,
    drain_for: u32,
    /// Nodes that still have connections.
    keepers: BTreeSet<u16>,
    /// Many rules have the same past and present.
    known: BTreeMap<(Run, Run, Deadlines, Run), Place>,
}

impl<'a> Past<'a> {
    pub fn new(
        objects: &Objects,
        present: &'a MuxTables,
        nodes: &BTreeMap<String, u16>,
        now: Millis,
    ) -> Past<'a> {
        let keeps = |(name, _): &(&String, &u16)| serving::keeps_connections(objects, name, now);
        Past {
            present,
            now,
            drain_for: objects.cluster().drain_for_seconds.into(),
            keepers: nodes.iter().filter(keeps).map(|(_, index)| *index).collect(),
            known: BTreeMap::new(),
        }
    }

    /// The previous nodes of a rule whose new connections go by the run `current` from now on.
    pub fn previous(
        &mut self,
        key: &RuleKey<Address>,
        current: Run,
        runs: &mut Runs<Owners>,
    ) -> Place {
        let Some(rule) = self.present.rules.get(key) else { return Place::default() };
        let old = (rule.maglev_first, rule.maglev_count);
        // Equal runs share a place, and a place is not used again while something stands there.
        if rule.previous_count == 0 && old == current {
            return Place::default();
        }
        let deadlines = self.present.deadlines.get(key).cloned().unwrap_or_default();
        let before = (rule.previous_first, rule.previous_count);
        let known = (old, before, deadlines, current);
        if let Some(place) = self.known.get(&known) {
            return place.clone();
        }
        let place = self.place(rule, &known.2, current, runs);
        self.known.insert(known, place.clone());
        place
    }

    fn place(
        &self,
        rule: &Rule,
        deadlines: &Deadlines,
        current: Run,
        runs: &mut Runs<Owners>,
    ) -> Place {
        let pair = |[a, b, c, d]: [u16; 4]| [[a, b], [c, d]];
        let before = self.entries(rule.previous_first, rule.previous_count * PREVIOUS_MAX as u32);
        let before: Vec<Previous> = before.into_iter().flat_map(pair).collect();
        let past = Parts {
            current: self.run((rule.maglev_first, rule.maglev_count)),
            previous: before,
            deadlines: deadlines.clone(),
        };
        let (first, count) = current;
        let rows = runs.rows_of(first / PER_ROW).unwrap_or_default();
        let current: Vec<u16> = rows.iter().flat_map(|row| row.0).take(count as usize).collect();
        let keeps = |node| self.keepers.contains(&node);
        let next = past.followed_by(&current, self.now, self.drain_for, keeps);
        let rows: Vec<Owners> = next
            .previous
            .chunks(PARTS_PER_ROW)
            .map(|parts| {
                let mut row = Owners::default();
                for (place, node) in row.0.iter_mut().zip(parts.iter().flatten()) {
                    *place = *node;
                }
                row
            })
            .collect();
        // Where there is no room, connections move with the new ones.
        match runs.place(rows) {
            Some(row) if !next.previous.is_empty() => {
                (row * PER_ROW, next.previous.len() as u32, next.deadlines)
            }
            _ => Place::default(),
        }
    }

    /// A run as it stands.
    fn run(&self, (first, count): Run) -> Vec<u16> {
        let rows = self.entries(first, count);
        rows.into_iter().flatten().take(count as usize).collect()
    }

    /// Rows of a run as it stands.
    fn entries(&self, first: u32, count: u32) -> Vec<[u16; PER_ROW as usize]> {
        let rows = first / PER_ROW..first / PER_ROW + count.div_ceil(PER_ROW);
        rows.map(|row| self.present.maglev.get(&row).map_or([0; 4], |row| row.0)).collect()
    }
}
