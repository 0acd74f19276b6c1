//! Generic UDP Encapsulation, variant 1: an IP packet directly behind a UDP header
//! (draft-ietf-intarea-gue, 4). The underlay is IPv4.

use crate::{
    checksum,
    packet::{self, ETHERNET, Packet},
    protocol,
    tables::MuxSettings,
};

/// Bytes that wrapping adds.
pub const OVERHEAD: usize = crate::limits::GUE_OVERHEAD as usize;
/// Bytes of all headers in front of the inner packet.
pub const OUTER: usize = ETHERNET + OVERHEAD;
/// First of the 16,384 source ports that spread flows over queues and paths.
pub const SOURCE_PORT_MIN: u16 = 0xc000;

/// Flags and fragment offset: DF alone.
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// Time to live 64, and UDP.
const HOPS_AND_PROTOCOL: u16 = 64 << 8 | protocol::UDP as u16;

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
    let total = inner + OVERHEAD as u16;
    let sum = [settings.address, node].map(u32::from_be_bytes).map(|a| (a >> 16) + (a & 0xffff));
    let rest = [u16::from_be_bytes([0x45, tos]), total, DO_NOT_FRAGMENT, HOPS_AND_PROTOCOL];
    let rest = rest[0] as u32 + rest[1] as u32 + rest[2] as u32 + rest[3] as u32;
    let sum = !checksum::fold(sum[0] + sum[1] + rest);
    let source_port = SOURCE_PORT_MIN | (hash & 0x3fff) as u16;
    // Field by field: what is put in whole is written whole by the kernel program.
    let mut b = [0u8; OUTER];
    b[..6].copy_from_slice(&settings.gateway_mac);
    b[6..12].copy_from_slice(&settings.mac);
    b[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
    b[14..16].copy_from_slice(&[0x45, tos]);
    b[16..18].copy_from_slice(&total.to_be_bytes());
    b[20..22].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
    b[22..24].copy_from_slice(&HOPS_AND_PROTOCOL.to_be_bytes());
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    b[26..30].copy_from_slice(&settings.address);
    b[30..34].copy_from_slice(&node);
    b[34..36].copy_from_slice(&source_port.to_be_bytes());
    b[36..38].copy_from_slice(&settings.gue_port.to_be_bytes());
    b[38..40].copy_from_slice(&(inner + 8).to_be_bytes());
    b
}

/// Who sent the wrapped packet that the frame carries, if it carries one for `own`.
#[inline(always)]
pub fn sender<P: Packet + ?Sized>(packet: &P, own: [u8; 4], port: u16) -> Option<[u8; 4]> {
    let b = packet.read::<OVERHEAD>(ETHERNET)?;
    // Muxes send no options and no fragments; whatever looks otherwise is not theirs.
    let is_wrapped = b[0] == 0x45
        && b[9] == protocol::UDP
        && b[6] & 0x3f == 0
        && b[7] == 0
        && packet::field::<4>(&b, 16) == own
        && u16::from_be_bytes([b[22], b[23]]) == port;
    is_wrapped.then_some(packet::field(&b, 12))
}
