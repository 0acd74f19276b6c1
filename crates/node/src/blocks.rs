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

    /// The first block of an address.
    pub fn first_of(&self, address: Address) -> Option<(Address, u16)> {
        let words = self.0.get(&address)?;
        let (word, bits) = words.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let block = word * 64 + bits.trailing_zeros() as usize;
        Some((address, (block * BLOCK_PORTS as usize) as u16))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Address, u16)> + '_ {
        self.0.iter().flat_map(|(address, words)| {
            let blocks = words.iter().enumerate().flat_map(|(word, bits)| {
                (0..64).filter(move |bit| bits & 1 << bit != 0).map(move |bit| word * 64 + bit)
            });
            blocks.map(move |block| (*address, (block * BLOCK_PORTS as usize) as u16))
        })
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
        let (one, other) = (Address::new(203, 0, 113, 10), Address::new(203, 0, 113, 11));
        let mut blocks: Blocks = [(one, 0), (one, 65_528)].into_iter().collect();
        blocks.add(&[(one, 512), (other, 1024)].into_iter().collect());
        let found: Vec<_> = [one, other]
            .into_iter()
            .flat_map(|address| (0..=65_528).step_by(8).map(move |start| (address, start)))
            .filter(|block| blocks.contains(block))
            .collect();
        assert_eq!(found, [(one, 0), (one, 512), (one, 65_528), (other, 1024)]);
        assert!(blocks.iter().eq(found));
        assert_eq!(blocks.first_of(other), Some((other, 1024)));
        assert_eq!(blocks.first_of(Address::new(203, 0, 113, 12)), None);
    }
}
