//! The kernel's counters by their names, summed over CPUs.

use std::collections::BTreeMap;

use datapath::count::{Drop, Event, Pass};

use crate::maps::{Counts, TableError};

/// What a counter tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Packets that went on unchanged.
    Pass,
    /// Packets that were refused.
    Drop,
    /// What else happened.
    Event,
}

impl Kind {
    /// The word in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Pass => "pass",
            Kind::Drop => "drop",
            Kind::Event => "event",
        }
    }
}

/// All counters, zeroes too.
pub type Counters = BTreeMap<(Kind, &'static str), u64>;

/// Reads all counters.
pub fn read(counts: &Counts) -> Result<Counters, TableError> {
    let passes = Pass::ALL.iter().map(|pass| (Kind::Pass, pass.name(), pass.counter()));
    let drops = Drop::ALL.iter().map(|drop| (Kind::Drop, drop.name(), drop.counter()));
    let events = Event::ALL.iter().map(|event| (Kind::Event, event.name(), event.counter()));
    passes
        .chain(drops)
        .chain(events)
        .map(|(kind, name, index)| Ok(((kind, name), counts.get(index)?)))
        .collect()
}
