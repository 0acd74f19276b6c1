//! What whoever looks at an object is told.

use crate::objects::ObjectKey;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The object.
    pub object: ObjectKey,
    /// Whether somebody has to do something about it.
    pub is_warning: bool,
    /// What it is, in one word.
    pub reason: String,
    /// What happened, with the numbers.
    pub message: String,
}
