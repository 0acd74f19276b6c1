//! One machine: loads and attaches the programs, applies table edits, reports what runs.

pub mod agent;
pub mod answer;
pub mod apply;
pub mod attach;
pub mod blocks;
pub mod census;
pub mod clock;
pub mod convert;
pub mod counters;
pub mod hold;
pub mod inspect;
pub mod journal;
pub mod load;
pub mod maps;
pub mod mux;
pub mod neighbour;
pub mod netlink;
pub mod pins;
pub mod raw;
mod refusal;
pub mod review;
pub mod source;
pub mod stop;
pub mod surroundings;
pub mod sweep;
pub mod uplink;
pub mod walk;
