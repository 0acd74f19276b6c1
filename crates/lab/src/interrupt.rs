//! Ctrl-C during long work: it ends at the next step, by the same way as any failure, so that
//! nothing half-built is left.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use node::stop::Stop;

static STOP: OnceLock<Stop> = OnceLock::new();

/// From here on the first SIGINT or SIGTERM is heeded by [`check`]; a second one ends the process.
pub fn heed() -> Result<()> {
    if STOP.get().is_none() {
        let stop = Stop::on_signals().context("cannot heed signals")?;
        // Somebody else's is as good.
        let _ = STOP.set(stop);
    }
    Ok(())
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    match STOP.get().is_some_and(Stop::is_set) {
        true => bail!("interrupted"),
        false => Ok(()),
    }
}
