//! Carries objects into the model and its answers back to where objects are kept.
//!
//! What is to be done is decided by [`model::reconcile`]; where objects are kept is a [`Store`].
//! This crate only turns the wheel: list, reconcile, write, wait.

#![forbid(unsafe_code)]

use std::time::Duration;

use model::lease::Millis;
use model::objects::{Object, ObjectKey, Objects};
use model::reconcile::{Event, Write, reconcile};
use model::tags::tag_writes;

/// How long a quiet store is left alone: rests end and muxes fall silent without a change in it.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long the wheel rests after a write that the store refused.
pub const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Where objects are kept.
pub trait Store {
    /// Why it did not do something.
    type Error: std::fmt::Display;

    /// Everything that exists.
    ///
    /// # Errors
    /// The store cannot be read.
    fn list(&mut self) -> Result<Objects, Self::Error>;

    /// Creates the object, or replaces all of it but its status. An object that carries a resource
    /// version is written only if that is still the stored one.
    ///
    /// # Errors
    /// The object was not written.
    fn put(&mut self, object: &Object) -> Result<(), Self::Error>;

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// The status was not written.
    fn put_status(&mut self, object: &Object) -> Result<(), Self::Error>;

    /// Deletes an object; one that is gone already is no error.
    ///
    /// # Errors
    /// The object was not deleted.
    fn delete(&mut self, key: &ObjectKey) -> Result<(), Self::Error>;

    /// Records an event.
    ///
    /// # Errors
    /// It was not recorded.
    fn record(&mut self, event: &Event, now: Millis) -> Result<(), Self::Error>;

    /// Returns when something may have changed since the last [`Store::list`], or after `timeout`.
    ///
    /// # Errors
    /// The store cannot be watched.
    fn wait(&mut self, timeout: Duration) -> Result<(), Self::Error>;
}

/// One turn of the wheel: how much was written. Writes are in an order in which they may stop
/// anywhere, so the first refusal ends the turn and the next one starts from what is then there.
/// `seed` is for draws that may be foreseen, `secret` for those that nobody may.
///
/// # Errors
/// What the store refused.
pub fn step<S: Store>(
    store: &mut S,
    now: Millis,
    seed: u64,
    secret: [u8; 32],
) -> Result<usize, S::Error> {
    let objects = store.list()?;
    let mut writes = reconcile(&objects, now, seed);
    writes.extend(tag_writes(&objects, now, secret));
    for write in &writes {
        match write {
            Write::Put(object) => store.put(object)?,
            Write::PutStatus(object) => store.put_status(object)?,
            Write::Delete(key) => store.delete(key)?,
            Write::Event(event) => store.record(event, now)?,
        }
    }
    Ok(writes.len())
}

/// Turns the wheel until `stop` says so. Refusals are told to `report` and tried again: most are
/// writes that somebody else's write has overtaken.
pub fn run<S: Store>(
    store: &mut S,
    seed: u64,
    secret: impl Fn() -> [u8; 32],
    clock: impl Fn() -> Millis,
    stop: impl Fn() -> bool,
    mut report: impl FnMut(&S::Error),
) {
    while !stop() {
        let turn = match step(store, clock(), seed, secret()) {
            // What was written may be what the next decision waits for.
            Ok(written) if written > 0 => Ok(()),
            Ok(_) => store.wait(WAIT_MAX),
            Err(error) => Err(error),
        };
        if let Err(error) = turn {
            report(&error);
            std::thread::sleep(RETRY_AFTER);
        }
    }
}

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;
