//! A strict store in memory, for tests: it refuses what an API server refuses, and can be told to
//! refuse the n-th write.

use std::time::Duration;

use model::lease::Millis;
use model::objects::{Object, ObjectKey, Objects};
use model::reconcile::{Event, Write, apply};
use thiserror::Error;

use crate::Store;

/// The store.
#[derive(Debug, Default)]
pub struct Memory {
    /// What exists.
    pub objects: Objects,
    /// What was recorded.
    pub events: Vec<Event>,
    /// Writes that succeeded.
    pub writes: usize,
    /// Writes that succeed before all others are refused; none: all do.
    pub writes_left: Option<usize>,
    /// How often somebody waited.
    pub waits: usize,
}

/// What the store refuses.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It was told to.
    #[error("{0}: refused on purpose")]
    OnPurpose(String),
    /// There is no such object.
    #[error("{0}: not found")]
    NotFound(ObjectKey),
    /// The object does not survive being written and read.
    #[error("{0}: changed by being written: {1}")]
    Form(ObjectKey, String),
}

impl Memory {
    fn spend(&mut self, what: &dyn std::fmt::Display) -> Result<(), Refused> {
        if let Some(left) = &mut self.writes_left {
            *left = left.checked_sub(1).ok_or_else(|| Refused::OnPurpose(what.to_string()))?;
        }
        self.writes += 1;
        Ok(())
    }
}

/// An object as it is after it has been JSON.
fn through_json(object: &Object) -> Result<Object, Refused> {
    let read = Object::from_json(object.to_json());
    match read {
        Ok(read) if read == *object => Ok(read),
        Ok(read) => Err(Refused::Form(object.key(), format!("{}", read.to_json()))),
        Err(error) => Err(Refused::Form(object.key(), error.to_string())),
    }
}

impl Store for Memory {
    type Error = Refused;

    fn list(&mut self) -> Result<Objects, Refused> {
        Ok(self.objects.clone())
    }

    fn put(&mut self, object: &Object) -> Result<(), Refused> {
        self.spend(&object.key())?;
        let object = through_json(object)?;
        apply(&mut self.objects, &[Write::Put(object)]);
        Ok(())
    }

    fn put_status(&mut self, object: &Object) -> Result<(), Refused> {
        self.spend(&object.key())?;
        if self.objects.get(&object.key()).is_none() {
            return Err(Refused::NotFound(object.key()));
        }
        let object = through_json(object)?;
        apply(&mut self.objects, &[Write::PutStatus(object)]);
        Ok(())
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<(), Refused> {
        self.spend(key)?;
        self.objects.remove(key);
        Ok(())
    }

    fn record(&mut self, event: &Event, _now: Millis) -> Result<(), Refused> {
        self.events.push(event.clone());
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> Result<(), Refused> {
        self.waits += 1;
        Ok(())
    }
}
