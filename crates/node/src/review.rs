//! When the flows are held against a truth that has changed: at once, and again when it has lasted.

use std::time::{Duration, Instant};

/// How long a change must stand before it cuts a TCP connection: objects are not read all in one
/// instant.
pub const LASTING: Duration = Duration::from_secs(1);
/// Where changes follow one another, how long the first one waits for that.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// How far the truth of now has been held against.
#[derive(Debug, Default)]
pub struct Review {
    /// The first and the last change since a truth has lasted.
    changed: Option<(Instant, Instant)>,
    /// Some flow may not have been held against the truth of now.
    is_owed: bool,
    /// The pass under way has begun with it.
    is_under_way: bool,
}

impl Review {
    /// The truth is another one.
    pub fn change(&mut self, now: Instant) {
        let first = self.changed.map_or(now, |(first, _)| first);
        *self = Review { changed: Some((first, now)), is_owed: true, is_under_way: false };
    }

    /// Whether a pass is to begin, or to go on, without delay.
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_owed || self.has_lasted(now)
    }

    /// A pass begins; says whether the truth has lasted, so that it may cut connections.
    pub fn begin(&mut self, now: Instant) -> bool {
        if self.has_lasted(now) {
            self.changed = None;
            self.is_owed = true;
        }
        self.is_under_way = self.is_owed;
        self.changed.is_none()
    }

    /// A pass has ended. If it left nothing undone and began with the truth of now, every flow has
    /// been held against that: says so once.
    pub fn end(&mut self, is_complete: bool) -> bool {
        let is_done = self.is_under_way && is_complete;
        self.is_owed &= !is_done;
        self.is_under_way = false;
        is_done
    }

    fn has_lasted(&self, now: Instant) -> bool {
        self.changed.is_some_and(|(first, last)| {
            now.duration_since(last) >= LASTING || now.duration_since(first) >= WAIT_MAX
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_against_at_once_and_again_when_it_has_lasted() {
        let start = Instant::now();
        let mut review = Review::default();
        assert!(!review.is_due(start));
        assert!(review.begin(start), "nothing has changed");
        assert!(!review.end(true));
        review.change(start);
        assert!(review.is_due(start));
        assert!(!review.begin(start), "it may be of one moment");
        assert!(!review.end(false), "some are left");
        assert!(review.is_due(start));
        assert!(!review.begin(start));
        assert!(review.end(true));
        assert!(!review.is_due(start));
        assert!(review.is_due(start + LASTING));
        assert!(review.begin(start + LASTING));
        assert!(review.end(true));
        assert!(!review.is_due(start + 2 * LASTING));
    }

    #[test]
    fn a_pass_that_began_before_the_change_does_not_count() {
        let start = Instant::now();
        let mut review = Review::default();
        review.begin(start);
        review.change(start);
        assert!(!review.end(true));
        assert!(review.is_due(start));
    }

    #[test]
    fn changes_without_end_do_not_keep_connections_for_ever() {
        let start = Instant::now();
        let mut review = Review::default();
        let mut now = start;
        while now < start + WAIT_MAX {
            review.change(now);
            assert!(!review.begin(now));
            now += LASTING / 2;
        }
        assert!(review.begin(start + WAIT_MAX));
    }
}
