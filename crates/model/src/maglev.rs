//! Maglev tables: which node gets which share of the hash space, so that few connections move
//! when a node comes or goes (Eisenbud et al., NSDI 2016, section 3.4; weights by the number of
//! turns a node gets).
//!
//! A table is a function of node names and weights alone, so every mux has the same one.

use std::collections::BTreeMap;

/// Table sizes. Every entry of a table is a whole number of entries of a larger one, so that tables
/// of different sizes can be compared entry by entry. (The paper takes primes; all that matters is
/// that a permutation visits every entry, which odd steps do here.)
pub const SIZES: [u32; 5] = [256, 1024, 4096, 16_384, 65_536];

/// Size of the table for this many nodes: at least 100 entries a node, if there is such a size.
pub fn size(nodes: usize) -> u32 {
    let wanted = 100 * nodes;
    SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// The table: for each entry the node that gets it, as its place among `weights`. Empty when no
/// node has weight.
pub fn table(weights: &BTreeMap<String, u32>) -> Vec<u16> {
    let heaviest = weights.values().copied().max().unwrap_or(0);
    if heaviest == 0 {
        return Vec::new();
    }
    let size = size(weights.values().filter(|weight| **weight > 0).count());
    let mut turns: Vec<Turn> = weights
        .iter()
        .enumerate()
        .filter(|(_, (_, weight))| **weight > 0)
        .map(|(place, (name, weight))| Turn::new(place as u16, name, *weight, size))
        .collect();
    let mut table = vec![u16::MAX; size as usize];
    let mut filled = 0;
    // BOUND: in each round the heaviest node fills one entry, so there are at most `size` rounds.
    loop {
        for turn in &mut turns {
            turn.credit += turn.weight;
            if turn.credit < heaviest {
                continue;
            }
            turn.credit -= heaviest;
            // BOUND: the permutation visits every entry once, and one is free.
            while let Some(entry) = table.get_mut(turn.next as usize) {
                turn.next = (turn.next + turn.skip) % size;
                if *entry == u16::MAX {
                    *entry = turn.place;
                    break;
                }
            }
            filled += 1;
            if filled == size {
                return table;
            }
        }
    }
}

struct Turn {
    place: u16,
    weight: u32,
    credit: u32,
    next: u32,
    skip: u32,
}

impl Turn {
    fn new(place: u16, name: &str, weight: u32, size: u32) -> Turn {
        let next = (hash(name, 1) % u64::from(size)) as u32;
        let skip = (hash(name, 2) % u64::from(size)) as u32 | 1;
        Turn { place, weight, credit: 0, next, skip }
    }
}

/// FNV-1a with a finish that spreads the last bytes.
fn hash(name: &str, seed: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(nodes: &[(&str, u32)]) -> BTreeMap<String, u32> {
        nodes.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    }

    fn shares(table: &[u16], nodes: usize) -> Vec<usize> {
        (0..nodes)
            .map(|node| table.iter().filter(|entry| usize::from(**entry) == node).count())
            .collect()
    }

    #[test]
    fn a_table_has_at_least_a_hundred_entries_a_node_up_to_the_largest_size() {
        assert_eq!(
            [1, 2, 3, 10, 11, 40, 163, 164, 2000].map(size),
            [256, 256, 1024, 1024, 4096, 4096, 16_384, 65_536, 65_536]
        );
    }

    #[test]
    fn shares_follow_weights() {
        let table = table(&weights(&[("n1", 1), ("n2", 3), ("n3", 0)]));
        assert_eq!(table.len(), 256);
        let shares = shares(&table, 3);
        assert_eq!(shares[2], 0);
        assert!((62..=66).contains(&shares[0]), "{shares:?}");
        assert_eq!(shares[0] + shares[1], 256);
    }

    #[test]
    fn few_entries_move_when_a_node_goes() {
        let names: Vec<String> = (0..10).map(|index| format!("node-{index}")).collect();
        let all: BTreeMap<String, u32> = names.iter().map(|name| (name.clone(), 1)).collect();
        let before = table(&all);
        let mut fewer = all.clone();
        fewer.insert("node-9".into(), 0);
        let after = table(&fewer);
        assert_eq!(before.len(), after.len());
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| **before != 9 && before != after)
            .count();
        // The paper finds a few per cent beyond what has to move.
        assert!(moved * 100 / before.len() < 10, "{moved} of {} moved", before.len());
    }

    #[test]
    fn no_weight_is_no_table() {
        assert!(table(&weights(&[("n1", 0)])).is_empty());
        assert!(table(&BTreeMap::new()).is_empty());
    }
}
