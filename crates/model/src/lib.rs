//! The cluster as values and the slow brains: what should be, and what to change to get there.
//!
//! [`reconcile`] is what the controller runs: from the objects that exist to the writes that are
//! due. [`tables`] is what agents and muxes run: from the objects to what the kernel holds.
//! [`decide`] is the outbound decision that both and `explain` share. Everything here is a pure
//! function: the time and the seed are arguments.

#![forbid(unsafe_code)]

pub mod addresses;
mod allocation;
pub mod backends;
pub mod cluster;
pub mod decide;
mod draining;
mod event;
pub mod explain;
mod kind;
pub mod kubernetes;
pub mod lease;
pub mod maglev;
pub mod manifest;
mod members;
pub mod method;
pub mod nearest;
pub mod objects;
mod parts;
mod places;
pub mod planner;
pub mod pods;
mod pools;
mod ports;
pub mod reconcile;
pub mod resources;
pub mod runtime;
mod services;
mod serving;
pub mod shortage;
pub mod tables;
pub mod tags;
pub mod truth;
pub mod validation;
pub mod wrap_keys;
