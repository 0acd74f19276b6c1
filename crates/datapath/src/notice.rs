//! What the programs tell user space beside counting.

use crate::{Port, limits::QUOTE_MAX};

/// A packet whose sender is to be told why it goes no further: of a flow that could not be opened
/// (ICMP type 3 code 13, and the event), or of a connection that is not there (RST).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Notice<A> {
    /// Who sent it.
    pub source: A,
    /// Where to.
    pub target: A,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub target_port: Port,
    /// IP protocol.
    pub protocol: u8,
    /// The policy under which it would have left.
    pub policy: u8,
    /// [`crate::Drop`] as a number.
    pub reason: u8,
    /// [`crate::tables::Side`] as a number.
    pub side: u8,
    /// Bytes of `quote` that were there.
    pub length: u32,
    /// First bytes of the packet from its own IP header on; zeroes behind its end.
    pub quote: [u8; QUOTE_MAX],
}

impl<A: Default> Default for Notice<A> {
    fn default() -> Self {
        Notice {
            source: A::default(),
            target: A::default(),
            source_port: Port::NONE,
            target_port: Port::NONE,
            protocol: 0,
            policy: 0,
            reason: 0,
            side: 0,
            length: 0,
            quote: [0; QUOTE_MAX],
        }
    }
}
