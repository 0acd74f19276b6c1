//! A small cluster of network namespaces on one machine: real programs on real interfaces, a
//! simulated Internet around them, and faults on demand.

pub mod attach;
pub mod capture;
pub mod client;
pub mod command;
pub mod echo;
pub mod fault;
pub mod handle;
pub mod host;
pub mod in_use;
pub mod interrupt;
pub mod kubelet;
pub mod life;
pub mod manifest;
pub mod namespace;
pub mod place;
pub mod process;
pub mod reach;
pub mod reading;
pub mod ready;
pub mod replay;
pub mod role;
pub mod store;
pub mod view;
pub mod wiring;
