//! Generic UDP Encapsulation, variant 0, with private data (draft-ietf-intarea-gue, 3). The
//! underlay is IPv4.
//!
//! ```text
//!    0        8       16       24     31
//!   +--+-+-----+--------+---------------+
//!   | 0|0|  3  |    4   |       0       |  variant, control, words that follow; IPv4; flags
//!   +--+-+-----+--------+---------------+
//!   |              other                |  a second node to try; zero: none
//!   +-----------------------------------+
//!   |               tag                 |
//!   |                                   |
//!   +-----------------------------------+
//! ```

use crate::{
    Ipv4, V4, checksum, hash,
    packet::{ETHERNET, Headers, Packet, View, ecn},
    protocol,
    tables::{MuxSettings, TagKeys},
};

/// Bytes that wrapping adds.
pub const OVERHEAD: usize = crate::limits::GUE_OVERHEAD as usize;
/// Bytes of all headers in front of the inner packet.
pub const OUTER: usize = ETHERNET + OVERHEAD;
/// First of the 16,384 source ports that spread flows over queues and paths.
pub const SOURCE_PORT_MIN: u16 = 0xc000;

/// Bytes of the IPv4 and UDP headers.
const UNDERLAY: usize = 20 + 8;
/// Bytes of the GUE header, private data included.
const SHIM: usize = OVERHEAD - UNDERLAY;
/// Its first word: variant 0, no control message, so many words behind this one; IPv4 inside; none
/// of the flags, so that all that follows is private data.
const FIRST_WORD: [u8; 4] = [(SHIM / 4 - 1) as u8, 4, 0, 0];

/// Flags and fragment offset: DF alone. Time to live 64, and UDP.
const CONSTANT: u32 = u32::from_be_bytes([0x40, 0, 64, protocol::UDP]);

/// What carries a packet to another machine: what of its outer headers is its own, and the settings
/// that say the rest.
///
/// Few numbers, for they outlive the call that makes room for the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer<'a> {
    /// The mux's settings.
    pub settings: &'a MuxSettings<Ipv4>,
    /// Where to.
    pub target: Ipv4,
    /// Bytes of the inner packet.
    pub inner: u16,
    /// Its type of service.
    pub tos: u8,
    /// What spreads flows.
    pub hash: u16,
    /// A second node to try, if the first one does not know the flow; all zeroes: none.
    pub other: Ipv4,
    /// [`tag`], or zero where nobody asks for it.
    pub tag: u64,
}

impl Outer<'_> {
    /// The headers.
    ///
    /// The type of service is the inner one's, so that congestion marks are seen on the way
    /// (RFC 6040). The UDP checksum is zero: the inner packet has its own (RFC 6935 allows it for
    /// IPv4 unconditionally). DF is set: a mux does not fragment.
    #[inline(always)]
    pub fn headers(&self) -> [u8; OUTER] {
        let settings = self.settings;
        let total = self.inner + OVERHEAD as u16;
        let [own, target] =
            [settings.address, self.target].map(|end| u32::from_le_bytes(end.wire()));
        // A sum of ones' complements is the same in either order of bytes (RFC 1071, 2).
        let start = u16::from_le_bytes([0x45, self.tos]) as u64;
        let sum = start + total.swap_bytes() as u64 + CONSTANT.swap_bytes() as u64;
        let sum = !checksum::fold_wide(sum + own as u64 + target as u64);
        let source_port = SOURCE_PORT_MIN | (self.hash & 0x3fff);
        // Field by field: what is put in whole is written whole by the kernel program.
        let mut b = [0u8; OUTER];
        b[..6].copy_from_slice(&settings.gateway_mac);
        b[6..12].copy_from_slice(&settings.mac);
        b[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
        b[14..16].copy_from_slice(&[0x45, self.tos]);
        b[16..18].copy_from_slice(&total.to_be_bytes());
        b[20..24].copy_from_slice(&CONSTANT.to_be_bytes());
        b[24..26].copy_from_slice(&sum.to_le_bytes());
        b[26..30].copy_from_slice(&settings.address.wire());
        b[30..34].copy_from_slice(&self.target.wire());
        b[34..36].copy_from_slice(&source_port.to_be_bytes());
        b[36..38].copy_from_slice(&settings.gue_port.to_be_bytes());
        b[38..40].copy_from_slice(&(total - 20).to_be_bytes());
        b[42..46].copy_from_slice(&FIRST_WORD);
        b[46..50].copy_from_slice(&self.other.wire());
        b[50..58].copy_from_slice(&self.tag.to_le_bytes());
        b
    }
}

/// Who sent the wrapped packet that the frame carries, if it carries one for `own`.
#[inline(always)]
pub fn sender<P: Packet + ?Sized>(packet: &P, own: Ipv4, port: u16) -> Option<Ipv4> {
    let b = &packet.read::<UNDERLAY>(ETHERNET)?;
    // Muxes send no options and no fragments; whatever looks otherwise is not theirs.
    let is_wrapped = b[0] == 0x45
        && b[9] == protocol::UDP
        && b[6] & 0x3f == 0
        && b[7] == 0
        && b.address(16) == own
        && u16::from_be_bytes([b[22], b[23]]) == port;
    is_wrapped.then_some(b.address(12))
}

/// Where the outer header's checksum stands in a frame.
pub const CHECKSUM_AT: usize = ETHERNET + 10;
/// Where its destination does.
pub const TARGET_AT: usize = ETHERNET + 16;
/// Where the second node to try does.
pub const OTHER_AT: usize = ETHERNET + UNDERLAY + 4;

/// Whether a wrapped packet has met congestion since it was wrapped.
#[inline(always)]
pub fn is_congested<P: Packet + ?Sized>(packet: &P) -> bool {
    packet.view::<2>(ETHERNET).is_some_and(|outer| outer.byte(1) & ecn::CE == ecn::CE)
}

/// The private data of a wrapped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Private {
    /// A second node to try; all zeroes: none.
    pub other: Ipv4,
    /// Shows that a mux of this cluster, or a node, has wrapped the packet: [`tag`].
    pub tag: u64,
}

/// Reads the GUE header of a wrapped packet ([`sender`]); nothing where it is none of ours.
#[inline(always)]
pub fn private<P: Packet + ?Sized>(packet: &P) -> Option<Private> {
    let b = &packet.read::<SHIM>(ETHERNET + UNDERLAY)?;
    let private = Private { other: b.address(4), tag: u64::from_le_bytes(b.field(8)) };
    (b.field(0) == FIRST_WORD).then_some(private)
}

/// The tag of a packet with these inner headers, with the key in one of the two `slot`s. Its lowest
/// bit is the slot, so that keys can change while packets are on their way.
///
/// It is over what both ends of every packet are sure to read, of later fragments too: source,
/// destination, ports, identification and protocol. Who sees a packet on its way can send it again,
/// with other contents as well, for as long as its key lives, but to no other flow. `other` is not
/// covered: who sends a packet on to the second node takes it out.
#[inline(always)]
pub fn tag(keys: &TagKeys, slot: u64, headers: &Headers<V4>) -> u64 {
    tag_of(keys, slot, covered(headers))
}

/// What a tag is over, as two words of which the last byte is free.
#[inline(always)]
fn covered(headers: &Headers<V4>) -> [u64; 2] {
    let source = u32::from_le_bytes(headers.source.wire()) as u64;
    let target = u32::from_le_bytes(headers.target.wire()) as u64;
    let source_port = u16::from_le_bytes(headers.source_port.wire()) as u64;
    let target_port = u16::from_le_bytes(headers.target_port.wire()) as u64;
    let id = u16::from_le_bytes(headers.id) as u64;
    let ports = source_port | target_port << 16;
    [source | target << 32, ports | id << 32 | (headers.protocol as u64) << 48]
}

#[inline(always)]
fn tag_of(keys: &TagKeys, slot: u64, words: [u64; 2]) -> u64 {
    let slot = slot & 1;
    hash::tag(keys[slot as usize], words) & !1 | slot
}

/// Whether the tag that came with a packet is the right one.
#[inline(always)]
pub fn is_authentic(keys: &TagKeys, private: &Private, headers: &Headers<V4>) -> bool {
    let [first, second] = covered(headers);
    is_tag(keys, private.tag, first, second)
}

// VERIFIER: a function of its own: what the hash needs of registers and stack is not the ingress
// program's.
#[inline(never)]
fn is_tag(keys: &TagKeys, tag: u64, first: u64, second: u64) -> bool {
    tag_of(keys, tag, [first, second]) == tag
}
