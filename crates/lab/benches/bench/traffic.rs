//! The packets of the bench: which tuple a flow's number stands for, as a frame and as a plan for
//! the kernel programs that make frames.

use crate::plan::{FRAME, Field, Plan, WRAPPED};
use crate::programs::Address;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const OVERHEAD: usize = WRAPPED - FRAME;

/// TCP flags of the bench's packets.
pub const ACK: u8 = 0x10;
/// A connection request.
pub const SYN: u8 = 0x02;

/// A number that is the same for all flows.
pub const fn fixed(base: u32) -> Field {
    Field { base, shift: 0, mask: 0 }
}

/// A number that some bits of the flow's number are added to.
pub const fn counted(base: u32, shift: u32, mask: u32) -> Field {
    Field { base, shift, mask }
}

/// A kind of packet, one for each flow.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Source and destination address, source and destination port.
    pub fields: [Field; 4],
    /// TCP with these flags; nothing: UDP.
    pub tcp: Option<u8>,
    /// Destination and source of the frame.
    pub macs: [[u8; 6]; 2],
    /// Wrapped by a mux with this address for a node with that one.
    pub wrapped: Option<[Address; 2]>,
}

/// A tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub target: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub target_port: u16,
}

impl Traffic {
    /// The tuple of a flow.
    pub fn tuple(&self, flow: u32) -> Tuple {
        let [source, target, source_port, target_port] = self.fields.map(|field| field.of(flow));
        Tuple {
            source: Address::from_number(source),
            target: Address::from_number(target),
            source_port: source_port as u16,
            target_port: target_port as u16,
        }
    }

    /// The frame of a flow.
    pub fn frame(&self, flow: u32) -> Vec<u8> {
        self.frame_of(&self.tuple(flow))
    }

    /// The frame of a tuple: [`FRAME`] bytes, or [`WRAPPED`].
    pub fn frame_of(&self, tuple: &Tuple) -> Vec<u8> {
        let mut frame = Vec::with_capacity(WRAPPED);
        frame.extend(self.macs[0]);
        frame.extend(self.macs[1]);
        frame.extend([0x08, 0x00]);
        let inner = FRAME - ETHERNET;
        if let Some([from, to]) = self.wrapped {
            frame.extend(ipv4(inner + OVERHEAD, 17, from, to));
            frame.extend(0xc123u16.to_be_bytes());
            frame.extend(datapath::limits::GUE_PORT.to_be_bytes());
            frame.extend(((inner + OVERHEAD - IPV4) as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend([3, 4, 0, 0]);
            frame.extend([0; 12]);
        }
        let protocol = if self.tcp.is_some() { 6 } else { 17 };
        frame.extend(ipv4(inner, protocol, tuple.source, tuple.target));
        let start = frame.len();
        frame.extend(tuple.source_port.to_be_bytes());
        frame.extend(tuple.target_port.to_be_bytes());
        let at = match self.tcp {
            Some(flags) => {
                frame.extend([0, 0, 0x10, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                start + 16
            }
            None => {
                frame.extend(((inner - IPV4) as u16).to_be_bytes());
                frame.extend([0, 0]);
                start + 6
            }
        };
        frame.resize(start + inner - IPV4, 0xa5);
        let sum = checksum(&[
            &tuple.source.wire(),
            &tuple.target.wire(),
            &[0, protocol],
            &((inner - IPV4) as u16).to_be_bytes(),
            &frame[start..],
        ]);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// How the kernel programs make the frames of `flows` flows from `first` on; `flows` is a power
    /// of two.
    pub fn plan(&self, first: u32, flows: u32, step: u32) -> Plan {
        let shift = if self.wrapped.is_some() { OVERHEAD } else { 0 };
        let ip = ETHERNET + shift;
        // With a tuple of zeroes the checksums are the complements of all that does not change.
        let nobody =
            Tuple { source: Address::NONE, target: Address::NONE, source_port: 0, target_port: 0 };
        let blank = self.frame_of(&nobody);
        let l4_checksum = ip + IPV4 + if self.tcp.is_some() { 16 } else { 6 };
        let word = |at: usize| u32::from(!u16::from_be_bytes([blank[at], blank[at + 1]]));
        let mut frame = [0; 112];
        frame[..blank.len()].copy_from_slice(&blank);
        Plan {
            frame,
            length: blank.len() as u32,
            next: 0,
            mask: flows - 1,
            step,
            first,
            is_tcp: self.tcp.is_some().into(),
            ip_sum: word(ip + 10),
            l4_sum: word(l4_checksum),
            fields: self.fields,
        }
    }
}

fn ipv4(total: usize, protocol: u8, source: Address, target: Address) -> [u8; IPV4] {
    let [t0, t1] = (total as u16).to_be_bytes();
    let [a, b, c, d] = source.wire();
    let [e, f, g, h] = target.wire();
    let mut header = [0x45, 0, t0, t1, 0, 0, 0x40, 0, 64, protocol, 0, 0, a, b, c, d, e, f, g, h];
    let sum = checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

/// The Internet checksum of some runs of bytes, each of an even length but the last.
pub fn checksum(runs: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for run in runs {
        for pair in run.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
