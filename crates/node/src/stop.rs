//! When to end: a flag that every loop looks at, and that SIGTERM and SIGINT set.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::sys::signal::Signal;

use crate::raw;

/// Set once, looked at by every loop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    heeds_signals: bool,
}

impl Stop {
    /// A flag that only [`Stop::set`] sets.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// A flag that the first SIGTERM or SIGINT sets as well; a second one ends the process.
    pub fn on_signals() -> std::io::Result<Stop> {
        raw::note_signals(&[Signal::SIGTERM, Signal::SIGINT])?;
        Ok(Stop { heeds_signals: true, ..Stop::default() })
    }

    /// Ends the loops.
    pub fn set(&self) {
        self.flag.store(true, Relaxed);
    }

    /// Whether it is time to end.
    pub fn is_set(&self) -> bool {
        self.flag.load(Relaxed) || self.heeds_signals && raw::is_signalled()
    }
}
