//! When to end: SIGTERM and SIGINT set a flag that the loops look at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use nix::sys::signal::{SigSet, Signal};

/// Set once, looked at by every loop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that only [`Stop::set`] sets.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// A flag that SIGTERM and SIGINT set. Call it before other threads start: the signals are
    /// kept from this thread and those that it starts, and one thread waits for them.
    pub fn on_signals() -> std::io::Result<Stop> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        let stop = Stop::new();
        let flag = stop.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            if signals.wait().is_ok() {
                flag.set();
            }
        })?;
        Ok(stop)
    }

    /// Ends the loops.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it is time to end.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}
