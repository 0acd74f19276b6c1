//! Which ports of a holding one destination uses: a free one is found in constant time however
//! full the holding is.
//!
//! Uniqueness of tuples is the flow table's business: a port is taken by inserting the reverse
//! entry. What stands here only makes the search cheap. The first flows to a destination try ports
//! by chance; once a search has met several ports in use, the destination gets a row: a bitmap over
//! the node's holding (position = block index * 8 + offset) under a summary, so that a free
//! position is found with a handful of reads and a full holding is seen as quickly. Positions
//! taken before the row was there are unknown to it: each costs one failed try, then it is known.
//! They are as likely to be drawn as free ones, so they dwindle in step and none is left when the
//! last port is asked for.

use core::cell::Cell;

use crate::{Family, Port, V4, hash, limits::BLOCKS_MAX, tables::AgentSettings};

type Address = <V4 as Family>::Address;

/// Words of a bitmap over all positions: 8,000 blocks * 8 ports / 64, rounded up to a power of two.
// VERIFIER: an index is masked, not compared; a comparison is optimised into something that the
// kernel does not follow.
pub const WORDS: usize = ((BLOCKS_MAX as usize * 8) / 64).next_power_of_two();
/// Words of the summary, one bit for each word.
pub const SUMMARY: usize = WORDS.div_ceil(64);
/// Rows that a destination's row is looked for in.
pub const PROBES: u32 = 4;

/// A bitmap over the positions of the holding. Set means taken.
///
/// Row 0 of the table is not a destination's: a set bit there is a position that new flows may
/// not take at all (not held, draining, a listener's).
#[repr(C)]
pub struct Positions {
    /// Whose row this is: the destination's fingerprint, 0 when free.
    pub fingerprint: Cell<u64>,
    /// Bit i: all bits of summary word i are set.
    pub top: Cell<u64>,
    /// Bit i of word j: all positions of word 64 * j + i are taken or barred.
    pub summary: [Cell<u64>; SUMMARY],
    /// One bit for each position.
    pub words: [Cell<u64>; WORDS],
}

impl crate::tables::Row for Positions {}

/// Changes to words that several CPUs change at once.
pub trait Bits {
    /// Sets bits, atomically.
    fn set_bits(&self, word: &Cell<u64>, bits: u64);
    /// Clears bits, atomically.
    fn clear_bits(&self, word: &Cell<u64>, bits: u64);
    /// Writes `value` where zero stands, atomically; what stands there afterwards.
    fn claim(&self, word: &Cell<u64>, value: u64) -> u64;
    /// Adds one, atomically.
    fn add_one(&self, number: &Cell<u32>);
    /// Takes one away, atomically.
    fn take_one(&self, number: &Cell<u32>);
}

/// A run of whole words. Segments start on a word's first position; what their last word has too
/// much is barred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First word.
    pub first: u32,
    /// Last word.
    pub last: u32,
}

/// What one step of a search in a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A position that was free when it was looked at.
    Free(u32),
    /// None is free.
    Full,
    /// Something that the summary called open was not. It is closed now, so ask again.
    Again,
}

/// What stands for a destination in its row of positions. Never zero, which means a free row.
#[inline(always)]
pub fn fingerprint(
    settings: &AgentSettings<Address>,
    remote: Address,
    port: Port,
    protocol: u8,
) -> u64 {
    let ([a, b, c, d], [e, f]) = (remote.wire(), port.wire());
    let word = u64::from_le_bytes([a, b, c, d, e, f, protocol, 1]);
    hash::secret(settings.seed, [word, 0]) | 1
}

/// Looks for a free position of `run`, chosen by `random`.
// VERIFIER: no loop; the caller's tries are the only one.
#[inline(always)]
pub fn find<B: Bits>(
    bits: &B,
    row: &Positions,
    barred: &Positions,
    run: Run,
    random: u64,
) -> Found {
    let low = random as u32;
    let high = (random >> 32) as u32;
    let start = run.first + hash::below(low, run.last - run.first + 1);
    if let Some(position) = free_in(row, barred, start, high) {
        return Found::Free(position);
    }
    let (first, last) = (run.first / 64, run.last / 64);
    if let Some(found) = in_group(bits, row, barred, run, start / 64, random) {
        return found;
    }
    if let Some(found) = in_group(bits, row, barred, run, first, random) {
        return found;
    }
    if let Some(found) = in_group(bits, row, barred, run, last, random) {
        return found;
    }
    // The groups between are the run's alone, so the top level speaks for them.
    let between = (1u64 << last) - 1;
    let open = !row.top.get() & between & !((2u64 << first) - 1);
    let Some(group) = one_of(open, low) else { return Found::Full };
    match in_group(bits, row, barred, run, group, random) {
        Some(found) => found,
        None => {
            bits.set_bits(&row.top, 1 << (group % 64));
            Found::Again
        }
    }
}

/// Looks for a free position in the words of one summary word; nothing where all are closed.
#[inline(always)]
fn in_group<B: Bits>(
    bits: &B,
    row: &Positions,
    barred: &Positions,
    run: Run,
    group: u32,
    random: u64,
) -> Option<Found> {
    let summary = &row.summary[group as usize % SUMMARY];
    let open = !summary.get() & group_mask(group, run);
    let bit = one_of(open, random as u32)?;
    match free_in(row, barred, group * 64 + bit, (random >> 32) as u32) {
        Some(position) => Some(Found::Free(position)),
        None => {
            bits.set_bits(summary, 1 << (bit % 64));
            Some(Found::Again)
        }
    }
}

/// The number of a set bit, the next one from a random place on.
#[inline(always)]
fn one_of(set: u64, random: u32) -> Option<u32> {
    if set == 0 {
        return None;
    }
    let turn = random % 64;
    Some((set.rotate_right(turn).trailing_zeros() + turn) % 64)
}

/// Which bits of summary word `group` stand for words of `run`.
#[inline(always)]
const fn group_mask(group: u32, run: Run) -> u64 {
    let mut mask = u64::MAX;
    if group == run.first / 64 {
        mask &= u64::MAX << (run.first % 64);
    }
    if group == run.last / 64 {
        mask &= u64::MAX >> (63 - run.last % 64);
    }
    mask
}

/// A free position in one word.
#[inline(always)]
fn free_in(row: &Positions, barred: &Positions, word: u32, random: u32) -> Option<u32> {
    let taken = row.words[word as usize % WORDS].get();
    let barred = barred.words[word as usize % WORDS].get();
    Some(word * 64 + one_of(!(taken | barred), random)?)
}

impl Positions {
    /// Marks a position as taken.
    #[inline(always)]
    pub fn take<B: Bits>(&self, bits: &B, position: u32) {
        bits.set_bits(&self.words[position as usize / 64 % WORDS], 1 << (position % 64));
    }

    /// Marks a position as free again. The flow's entries must be gone already.
    #[inline(always)]
    pub fn release<B: Bits>(&self, bits: &B, position: u32) {
        let word = position as usize / 64;
        bits.clear_bits(&self.words[word % WORDS], 1 << (position % 64));
        bits.clear_bits(&self.summary[word / 64 % SUMMARY], 1 << (word % 64));
        bits.clear_bits(&self.top, 1 << (word / 64));
    }

    /// An empty row.
    pub const fn new() -> Self {
        Positions {
            fingerprint: Cell::new(0),
            top: Cell::new(0),
            summary: [const { Cell::new(0) }; SUMMARY],
            words: [const { Cell::new(0) }; WORDS],
        }
    }

    /// Positions that are taken.
    pub fn taken(&self) -> u32 {
        self.words.iter().map(|word| word.get().count_ones()).sum()
    }
}

impl Default for Positions {
    fn default() -> Self {
        Self::new()
    }
}

/// The rows in which the destination with this fingerprint may be: `first` and the next
/// [`PROBES`] - 1, over the `rows` - 1 rows behind row 0.
#[inline(always)]
pub const fn probe(fingerprint: u64, step: u32, rows: u32) -> u32 {
    1 + ((fingerprint as u32).wrapping_add(step)) % (rows - 1)
}
