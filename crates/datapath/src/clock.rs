//! The clock of the programs.

use crate::tables::Row;

/// How the number of times that the kernel's timer has ticked becomes nanoseconds of the monotonic
/// clock. The kernel advances both in the same moment, and a program reads the ticks without a call
/// into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// Nanoseconds from one tick to the next.
    pub tick: u64,
    /// What the monotonic clock would have shown before the first tick; wraps.
    pub offset: u64,
}

impl Clock {
    /// The clock of a kernel that shows `now` after `ticks`.
    pub const fn new(tick: u64, ticks: u64, now: u64) -> Clock {
        Clock { tick, offset: now.wrapping_sub(ticks.wrapping_mul(tick)) }
    }

    /// The time after so many ticks, in nanoseconds.
    #[inline(always)]
    pub const fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks.wrapping_mul(self.tick).wrapping_add(self.offset)
    }
}

impl Row for Clock {}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn time_goes_on_by_ticks_from_where_it_was_read() {
        // Linux starts to count five minutes before 2^32.
        let first = (1u64 << 32) - 300 * 250;
        let clock = Clock::new(4_000_000, first, 1_000);
        assert_eq!(clock.nanoseconds(first), 1_000);
        assert_eq!(clock.nanoseconds(first + 250), 1_000_001_000);
        let late = Clock::new(4_000_000, u64::MAX, 5);
        assert_eq!(late.nanoseconds(u64::MAX.wrapping_add(1)), 4_000_005);
    }
}
