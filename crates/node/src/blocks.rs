//! Blocks of ports by address, as bitmaps: the sweep asks for one with every flow.

use std::collections::BTreeMap;

use datapath::limits::BLOCK_PORTS;

use crate::maps::Address;

/// Blocks of one address / bits of a word.
const WORDS: usize = (1 << 16) / BLOCK_PORTS as usize / 64;

/// A set of blocks, each named by its address and its first port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks(BTreeMap<Address, Box<[u64; WORDS]>>);

impl Blocks {
    /// Adds a block.
    pub fn insert(&mut self, (address, start): (Address, u16)) {
        let (word, bit) = place(start);
        self.0.entry(address).or_insert_with(|| Box::new([0; WORDS]))[word] |= bit;
    }

    /// Whether a block is among them.
    pub fn contains(&self, (address, start): &(Address, u16)) -> bool {
        let (word, bit) = place(*start);
        self.0.get(address).is_some_and(|words| words[word] & bit != 0)
    }

    /// Adds all blocks of another set.
    pub fn add(&mut self, other: &Blocks) {
        for (address, words) in &other.0 {
            let own = self.0.entry(*address).or_insert_with(|| Box::new([0; WORDS]));
            for (own, more) in own.iter_mut().zip(words.iter()) {
                *own |= more;
            }
        }
    }
}

impl FromIterator<(Address, u16)> for Blocks {
    fn from_iter<T: IntoIterator<Item = (Address, u16)>>(all: T) -> Self {
        let mut blocks = Blocks::default();
        for block in all {
            blocks.insert(block);
        }
        blocks
    }
}

fn place(start: u16) -> (usize, u64) {
    let block = usize::from(start) / BLOCK_PORTS as usize;
    (block / 64, 1 << (block % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_nothing_else() {
        let (one, other) = ([203, 0, 113, 10], [203, 0, 113, 11]);
        let mut blocks: Blocks = [(one, 0), (one, 65_528)].into_iter().collect();
        blocks.add(&[(one, 512), (other, 1024)].into_iter().collect());
        let found: Vec<_> = [one, other]
            .into_iter()
            .flat_map(|address| (0..=65_528).step_by(8).map(move |start| (address, start)))
            .filter(|block| blocks.contains(block))
            .collect();
        assert_eq!(found, [(one, 0), (one, 512), (one, 65_528), (other, 1024)]);
    }
}
