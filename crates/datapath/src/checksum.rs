//! Internet checksums (RFC 1071) and how they change with a field (RFC 1624).

use crate::Ipv4;

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Folds a sum of words of 32 bits, far fewer than would fill 64.
#[inline(always)]
pub const fn fold_wide(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field `sum` after the 16-bit word `old` became `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn replace(sum: u16, old: u16, new: u16) -> u16 {
    !fold(!sum as u32 + !old as u32 + new as u32)
}

/// The checksum field `sum` after an IPv4 address that it covers, or that its pseudo-header names,
/// became another. Words are as they lie in memory.
#[inline(always)]
pub fn replace_address(sum: u16, old: Ipv4, new: Ipv4) -> u16 {
    let [old_high, old_low] = halves(old);
    let [new_high, new_low] = halves(new);
    let gone = !old_high as u32 + !old_low as u32;
    !fold(!sum as u32 + gone + new_high as u32 + new_low as u32)
}

/// What stands in the checksum field of a TCP or UDP packet over IPv4 that the card is to fill in:
/// the sum of the pseudo-header. `length` is that of the segment or datagram. Words are as they lie
/// in memory.
#[inline(always)]
pub fn pseudo_header(source: Ipv4, target: Ipv4, protocol: u8, length: u16) -> u16 {
    let [a, b] = halves(source);
    let [c, d] = halves(target);
    let rest = (protocol as u16).to_be() as u32 + length.to_be() as u32;
    fold(a as u32 + b as u32 + c as u32 + d as u32 + rest)
}

/// Whether two sums are the same number: ones' complement has two zeroes.
#[inline(always)]
pub const fn same(one: u16, other: u16) -> bool {
    one == other || (one == 0 && other == 0xffff) || (one == 0xffff && other == 0)
}

#[inline(always)]
fn halves(address: Ipv4) -> [u16; 2] {
    let [a, b, c, d] = address.wire();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// The checksum of an IPv4 header without options whose checksum field is zero.
#[inline(always)]
pub fn ipv4_header(header: &[u8; 20]) -> u16 {
    let mut sum = 0u32;
    let mut i = 0;
    while i < 20 {
        sum += u16::from_be_bytes([header[i], header[i + 1]]) as u32;
        i += 2;
    }
    !fold(sum)
}
