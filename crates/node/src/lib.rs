//! One machine: loads and attaches the programs, applies table edits, reports what runs.

pub mod attach;
pub mod counters;
pub mod load;
pub mod maps;
pub mod pins;
pub mod raw;
