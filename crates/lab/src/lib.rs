//! A small cluster of network namespaces on one machine: real programs on real interfaces, a
//! simulated Internet around them, and faults on demand.

pub mod command;
pub mod echo;
pub mod host;
pub mod namespace;
pub mod place;
pub mod process;
pub mod store;
pub mod wiring;
