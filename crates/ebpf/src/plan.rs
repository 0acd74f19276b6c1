//! What the programs of `make bench` and the bench itself tell each other. Both compile this file.

/// Bytes of a frame as the bench sends it.
pub const FRAME: usize = 64;
/// The same, wrapped by a mux.
pub const WRAPPED: usize = FRAME + datapath::gue::OVERHEAD;
/// Rows of the reference's ports: one for each block.
pub const BLOCKS: u32 = 65_536 / datapath::limits::BLOCK_PORTS;

/// How one number of the tuple follows from the flow's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Field {
    /// The number of flow 0.
    pub base: u32,
    /// Bits of the flow's number that do not count.
    pub shift: u32,
    /// Bits that count after the shift.
    pub mask: u32,
}

impl Field {
    /// The number of a flow.
    #[inline(always)]
    pub fn of(&self, flow: u32) -> u32 {
        self.base.wrapping_add((flow >> (self.shift & 31)) & self.mask)
    }
}

/// Which frames come one after another.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan {
    /// The frame; tuple and checksums are written over it for each flow.
    pub frame: [u8; 112],
    /// [`FRAME`] or [`WRAPPED`].
    pub length: u32,
    /// Frames so far.
    pub next: u32,
    /// Flows - 1; the number of flows is a power of two.
    pub mask: u32,
    /// Step from flow to flow, odd, so that all are met before one comes again.
    pub step: u32,
    /// Number of the first flow.
    pub first: u32,
    /// 1 for TCP, 0 for UDP.
    pub is_tcp: u32,
    /// Sum of the IP header's other words.
    pub ip_sum: u32,
    /// Sum of the transport's and pseudo-header's other words.
    pub l4_sum: u32,
    /// Source and destination address, source and destination port.
    pub fields: [Field; 4],
}

impl Plan {
    /// Number of the flow of frame `next`.
    #[inline(always)]
    pub fn flow(&self, next: u32) -> u32 {
        self.first.wrapping_add(next.wrapping_mul(self.step) & self.mask)
    }
}

/// What arrived at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sink {
    /// Bits of the source address that are looked at.
    pub mask: u32,
    /// What they must be.
    pub source: u32,
    /// 1 to verify checksums too.
    pub verify: u32,
    /// Zero.
    pub reserved: u32,
    /// Frames with that source.
    pub matching: u64,
    /// Other IPv4 frames of UDP.
    pub other: u64,
    /// Frames with a wrong checksum.
    pub broken: u64,
}
