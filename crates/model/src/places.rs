//! Places in the kernel's arrays: whatever stays keeps its place, so that nothing moves under
//! live flows when something else changes.
//!
//! A place that is given up is not used again in the same step: until the edits are through,
//! readers may still find the old content there.

use std::collections::{BTreeMap, BTreeSet};

/// Gives each wanted thing a place of its own from `first` up to but not including `end`: the one
/// it has in `present`, else the lowest that is not in use. Things for which there is no place are
/// left out.
pub(crate) fn places<K: Ord + Clone>(
    present: &BTreeMap<K, u32>,
    wanted: impl IntoIterator<Item = K>,
    first: u32,
    end: u32,
) -> BTreeMap<K, u32> {
    let used: BTreeSet<u32> = present.values().copied().collect();
    let mut free = (first..end).filter(|place| !used.contains(place));
    let mut given = BTreeMap::new();
    for thing in wanted {
        let place = match present.get(&thing) {
            Some(place) => Some(*place),
            None if given.contains_key(&thing) => continue,
            None => free.next(),
        };
        given.extend(place.map(|place| (thing, place)));
    }
    given
}

/// Places for runs of rows. Runs with equal content share a place.
#[derive(Debug)]
pub(crate) struct Runs<T> {
    /// Rows that something uses or used, by first row: how many.
    taken: BTreeMap<u32, u32>,
    known: Vec<(u32, Vec<T>)>,
    wanted: BTreeSet<u32>,
    end: u32,
}

impl<T: PartialEq + Clone> Runs<T> {
    /// Starts from the runs that stand in an array of `end` rows.
    pub fn new(present: impl IntoIterator<Item = (u32, Vec<T>)>, end: u32) -> Runs<T> {
        let mut runs = Runs { taken: BTreeMap::new(), known: vec![], wanted: BTreeSet::new(), end };
        for (first, rows) in present {
            let taken = runs.taken.entry(first).or_insert(0);
            *taken = (*taken).max(rows.len() as u32);
            if !rows.is_empty() && !runs.known.iter().any(|(known, _)| *known == first) {
                runs.known.push((first, rows));
            }
        }
        runs
    }

    /// The first row of a run with this content; none when there is no room.
    pub fn place(&mut self, rows: Vec<T>) -> Option<u32> {
        if rows.is_empty() {
            return Some(0);
        }
        let known = self.known.iter().find(|(_, known)| *known == rows).map(|(first, _)| *first);
        let first = match known {
            Some(first) => first,
            None => {
                let first = self.free(rows.len() as u32)?;
                self.taken.insert(first, rows.len() as u32);
                self.known.push((first, rows));
                first
            }
        };
        self.wanted.insert(first);
        Some(first)
    }

    fn free(&self, count: u32) -> Option<u32> {
        let mut from = 0;
        for (first, length) in &self.taken {
            if from + count <= *first {
                return Some(from);
            }
            from = from.max(first + length);
        }
        (from + count <= self.end).then_some(from)
    }

    /// The rows of the run that begins at `first`.
    pub fn rows_of(&self, first: u32) -> Option<&[T]> {
        let run = self.known.iter().find(|(known, _)| *known == first);
        run.map(|(_, rows)| rows.as_slice())
    }

    /// All rows of the runs that were asked for.
    pub fn rows(&self) -> BTreeMap<u32, T> {
        let wanted = self.known.iter().filter(|(first, _)| self.wanted.contains(first));
        wanted.flat_map(|(first, rows)| (*first..).zip(rows.iter().cloned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_keeps_its_place_and_a_given_up_place_is_not_used_at_once() {
        let present = BTreeMap::from([("a", 1), ("b", 2), ("c", 3)]);
        let given = places(&present, ["c", "d", "b"], 1, 10);
        assert_eq!(given, BTreeMap::from([("b", 2), ("c", 3), ("d", 4)]));
        assert_eq!(places(&given, ["d", "e"], 1, 10), BTreeMap::from([("d", 4), ("e", 1)]));
        assert_eq!(places(&given, ["e", "f"], 1, 3), BTreeMap::from([("e", 1)]));
    }

    #[test]
    fn runs_with_equal_content_share_and_changed_ones_go_elsewhere() {
        let mut runs = Runs::new([(0, vec![1, 2]), (2, vec![3])], 10);
        assert_eq!(runs.place(vec![1, 2]), Some(0));
        assert_eq!(runs.place(vec![3, 4]), Some(3));
        assert_eq!(runs.place(vec![3, 4]), Some(3));
        assert_eq!(runs.rows(), BTreeMap::from([(0, 1), (1, 2), (3, 3), (4, 4)]));
        assert_eq!(runs.place(vec![0; 6]), None);
        assert_eq!(runs.place(vec![0; 5]), Some(5));
    }
}
