//! What happens to one packet.
#![no_std]
#![forbid(unsafe_code)]
