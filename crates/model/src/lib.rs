//! The cluster as values and the slow brains: what should be, and what to change to get there.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod decide;
pub mod kubernetes;
pub mod lease;
pub mod objects;
pub mod pods;
mod ports;
pub mod resources;
pub mod runtime;
