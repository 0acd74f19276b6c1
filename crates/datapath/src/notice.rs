//! What the programs tell user space beside counting.

/// A flow that could not be opened because every port for its destination is in use. User space
/// answers the client with ICMP type 3 code 13 and raises the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notice<A> {
    /// Who wanted to send.
    pub source: A,
    /// Where to.
    pub target: A,
    /// Source port, wire order.
    pub source_port: [u8; 2],
    /// Destination port, wire order.
    pub target_port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// The policy that had no port left.
    pub policy: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// First bytes of the packet from its IP header on, for the ICMP message to quote.
    pub quote: [u8; 28],
}
