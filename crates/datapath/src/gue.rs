//! Generic UDP Encapsulation, variant 1: an IP packet directly behind a UDP header
//! (draft-ietf-intarea-gue, 4). The underlay is IPv4.

use crate::{checksum, packet::ETHERNET, protocol, tables::MuxSettings};

/// Bytes that wrapping adds: IPv4 header 20 + UDP header 8.
pub const OVERHEAD: usize = 28;
/// Bytes of all headers in front of the inner packet.
pub const OUTER: usize = ETHERNET + OVERHEAD;
/// First of the 16,384 source ports that spread flows over queues and paths.
pub const SOURCE_PORT_MIN: u16 = 0xc000;

/// The headers that carry an inner packet of `inner` bytes to `node`.
///
/// The type of service is the inner one's, so that congestion marks are seen on the way
/// (RFC 6040). The UDP checksum is zero: the inner packet has its own (RFC 6935 allows it for
/// IPv4 unconditionally). DF is set: a mux does not fragment.
#[inline(always)]
pub fn outer(
    settings: &MuxSettings<[u8; 4]>,
    node: [u8; 4],
    inner: u16,
    tos: u8,
    hash: u32,
) -> [u8; OUTER] {
    let mut b = [0u8; OUTER];
    let [m0, m1, m2, m3, m4, m5] = settings.gateway_mac;
    let [s0, s1, s2, s3, s4, s5] = settings.mac;
    let total = (inner + OVERHEAD as u16).to_be_bytes();
    let udp = (inner + 8).to_be_bytes();
    let source_port = (SOURCE_PORT_MIN | (hash & 0x3fff) as u16).to_be_bytes();
    let port = settings.gue_port.to_be_bytes();
    let from = settings.address;
    let mut ip = [
        0x45,
        tos,
        total[0],
        total[1],
        0,
        0,
        0x40,
        0,
        64,
        protocol::UDP,
        0,
        0,
        from[0],
        from[1],
        from[2],
        from[3],
        node[0],
        node[1],
        node[2],
        node[3],
    ];
    let sum = checksum::ipv4_header(&ip).to_be_bytes();
    ip[10] = sum[0];
    ip[11] = sum[1];
    b[..ETHERNET].copy_from_slice(&[m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, s4, s5, 0x08, 0x00]);
    b[ETHERNET..ETHERNET + 20].copy_from_slice(&ip);
    b[ETHERNET + 20..].copy_from_slice(&[
        source_port[0],
        source_port[1],
        port[0],
        port[1],
        udp[0],
        udp[1],
        0,
        0,
    ]);
    b
}
