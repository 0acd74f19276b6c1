//! What happens to one packet: values in, a verdict out.
//!
//! The same code runs in the kernel programs and in tests. It has no clock, no map, no packet
//! pointer and no panic: a caller hands it a [`packet::Packet`] to read, tables to look things up
//! in and the time, and carries out the verdict that comes back.
//!
//! Everything is written over an address family ([`Family`]); [`V4`] is the instance in use.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod agent;
pub mod checksum;
pub mod clock;
pub mod count;
pub mod drain;
pub mod egress;
pub mod ends;
pub mod flow;
pub mod fragment;
pub mod gue;
pub mod hash;
pub mod icmp;
pub mod inbound;
pub mod ingress;
pub mod ipv6;
pub mod mux;
pub mod notice;
pub mod packet;
pub mod positions;
pub mod quota;
pub mod search;
pub mod tables;
pub mod verdict;

pub use count::{Drop, Event, Pass};
pub use ends::{Ipv4, Port};

use core::hash::Hash;

/// Numbers that the wire and both ends of a table must agree on.
pub mod limits {
    /// Ports in one block; leases start and end on block borders.
    pub const BLOCK_PORTS: u32 = 8;
    /// Lowest port that SNAT may use: the ones below are the system ports.
    pub const SNAT_PORT_MIN: u16 = 1024;
    /// Highest port that SNAT may use: 1024 + 64,000 - 1.
    pub const SNAT_PORT_MAX: u16 = 65_023;
    /// Blocks that one node can hold: 64,000 ports / 8.
    pub const BLOCKS_MAX: u32 = 8_000;
    /// Frontends that one policy can draw ports from.
    pub const SEGMENTS_MAX: usize = 16;
    /// Tables that a version can have.
    pub const LAYOUTS_ROWS: u32 = 64;
    /// Policies on one node.
    pub const POLICIES_MAX: u32 = 64;
    /// Source prefixes on one node.
    pub const SOURCES_MAX: u32 = 4_096;
    /// Prefixes that are not translated.
    pub const PRIVATE_RANGES_MAX: u32 = 256;
    /// VIPs that a node or mux knows.
    pub const VIPS_MAX: u32 = 1_024;
    /// Rows in which a mux looks for a VIP first.
    pub const NEAR_VIPS_ROWS: u32 = 4_096;
    /// Muxes that a node or mux takes packets from.
    pub const MUXES_MAX: u32 = 64;
    /// Service ports that a node or mux serves.
    pub const RULES_MAX: u32 = 65_536;
    /// Pod endpoints on one node, over all Service ports.
    pub const ENDPOINTS_MAX: u32 = 65_536;
    /// Nodes that a mux sends to.
    pub const NODES_MAX: u32 = 8_192;
    /// Parts of all datagrams, each of which one mux keeps together.
    pub const KEEPERS_ROWS: u32 = 4_096;
    /// Datagrams in fragments that a mux keeps together; the oldest make room.
    pub const MUX_FRAGMENTS_MAX: u32 = 65_536;
    /// Blocks of listeners whose other ports still carry a node's flows.
    pub const LEFTOVERS_MAX: u32 = 65_536;
    /// Maglev entries on one mux, over all backend sets.
    pub const MAGLEV_ENTRIES_MAX: u32 = 4 * 1024 * 1024;
    /// Nodes that a rule's flows may be on beside the one that gets its new ones.
    pub const PREVIOUS_MAX: usize = 2;
    /// Connections that a mux notes while nodes come and go; a later one takes an earlier one's
    /// row.
    pub const NOTES_ROWS: u32 = 65_536;
    /// Allowed source prefixes on one mux or node, over all rules.
    pub const ALLOWED_SOURCES_MAX: u32 = 65_536;
    /// Prefixes of pods, nodes and muxes, from which nothing comes in by a mux.
    pub const INTERNAL_RANGES_MAX: u32 = 65_536;
    /// Entries of the flow table; a flow takes two.
    pub const FLOW_ENTRIES_DEFAULT: u32 = 2 * 262_144;
    /// Entries of the table of flows that came in and are not confirmed; a flow takes two, and the
    /// oldest make room.
    pub const PENDING_ENTRIES: u32 = 131_072;
    /// Rows of positions: one for what is barred, the others for destinations that many flows go
    /// to.
    pub const POSITIONS_ROWS: u32 = 257;
    /// Datagrams whose fragments are translated at a time; the oldest make room.
    pub const FRAGMENTS_MAX: u32 = 8_192;
    /// Pods with quotas on one node.
    pub const QUOTAS_MAX: u32 = 1_024;
    /// Rows of allowances on one node: pods, their namespaces, and row 0, which is nobody's.
    pub const ALLOWANCES_ROWS: u32 = 2_048;
    /// The row of allowances that counts all flows that came in and were confirmed.
    pub const INBOUND_ALLOWANCE: u32 = ALLOWANCES_ROWS - 2;
    /// The row that sources without one of their own share. Its limit holds for pods too that have
    /// no quota ([`crate::tables::Allowance::DEFAULT`]).
    pub const OTHERS_ALLOWANCE: u32 = ALLOWANCES_ROWS - 1;
    /// Pods on one node whose flows end with them.
    pub const PODS_MAX: u32 = 4_096;
    /// Bytes of a packet that user space is told of, the most that there are of these: IPv4 and
    /// TCP headers with all IP options, without, and an IPv4 header and eight bytes.
    pub const QUOTE_LENGTHS: [u32; 3] = [60 + 20, 20 + 20, 20 + 8];
    /// The most of them.
    pub const QUOTE_MAX: usize = QUOTE_LENGTHS[0] as usize;
    /// What packets of the agent's own bear as mark (`SO_MARK`), so that an RST from a VIP is not
    /// taken for a forged one. Marks do not leave a network namespace, so no pod can set it.
    pub const OWN_MARK: u32 = 0xde60_0c41;
    /// Destination port of GUE.
    pub const GUE_PORT: u16 = 6080;
    /// Bytes that wrapping adds in front of an IPv4 packet: IPv4 header 20 + UDP header 8 + GUE
    /// header 4 + another node to try 4 + tag 8.
    pub const GUE_OVERHEAD: u16 = 44;
}

/// An address family: what the datapath is written over.
pub trait Family: Copy + Eq + core::fmt::Debug + 'static {
    /// An address as it is on the wire.
    type Address: Copy + Eq + Ord + Hash + Default + core::fmt::Debug + AsRef<[u8]> + 'static;
    /// Bits of an address.
    const BITS: u32;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl Family for V4 {
    type Address = Ipv4;
    const BITS: u32 = 32;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}
