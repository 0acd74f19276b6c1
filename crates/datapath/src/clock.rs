//! The clock of the programs.

use crate::tables::Row;

/// How jiffies, the number of times that the kernel's timer has ticked, become nanoseconds of the
/// monotonic clock. The kernel advances both in the same moment, and a program reads jiffies
/// without a call into the kernel.
///
/// The default is for kernels whose jiffies lag behind: there a program asks for the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// Nanoseconds from one jiffy to the next; 0 where jiffies cannot be gone by.
    pub jiffy: u64,
    /// What the monotonic clock would have shown before the first jiffy; wraps.
    pub offset: u64,
}

impl Clock {
    /// The clock of a kernel that shows `now` after `jiffies`.
    pub const fn new(jiffy: u64, jiffies: u64, now: u64) -> Clock {
        Clock { jiffy, offset: now.wrapping_sub(jiffies.wrapping_mul(jiffy)) }
    }

    /// Whether the time can be told by jiffies.
    #[inline(always)]
    pub const fn goes_by_jiffies(&self) -> bool {
        self.jiffy != 0
    }

    /// The time after so many jiffies, in nanoseconds.
    #[inline(always)]
    pub const fn nanoseconds(&self, jiffies: u64) -> u64 {
        jiffies.wrapping_mul(self.jiffy).wrapping_add(self.offset)
    }
}

impl Row for Clock {}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn time_goes_on_by_jiffies_from_where_it_was_read() {
        // Linux starts to count five minutes before 2^32.
        let first = (1u64 << 32) - 300 * 250;
        let clock = Clock::new(4_000_000, first, 1_000);
        assert_eq!(clock.nanoseconds(first), 1_000);
        assert_eq!(clock.nanoseconds(first + 250), 1_000_001_000);
        let late = Clock::new(4_000_000, u64::MAX, 5);
        assert_eq!(late.nanoseconds(u64::MAX.wrapping_add(1)), 4_000_005);
    }
}
