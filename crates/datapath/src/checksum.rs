//! Internet checksums (RFC 1071) and how they change with a field (RFC 1624).

use crate::{Ipv4, Port};

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

/// The transport checksum of a packet whose address and ports change. One that is complete follows
/// all changes; one that the card is to fill in, only that of the pseudo-header. Which one it is,
/// only the kernel knows, and asking it costs a call; but a packet that leaves may show it.
/// Words are as they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field as it stands.
    before: u16,
    /// What it becomes with the address, if it is complete.
    complete: u16,
}

/// What a transport checksum's field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The sum of everything.
    Everything,
    /// The sum of the pseudo-header; the card adds the rest.
    PseudoHeader,
    /// One of the two.
    Either,
}

impl Field {
    /// A field that holds `before`, in a packet whose address `old` becomes `new`.
    #[inline(always)]
    pub fn new(before: u16, old: Ipv4, new: Ipv4) -> Self {
        Self { before, complete: replace_address(before, old, new) }
    }

    /// What the field becomes with the address, if it is complete.
    #[inline(always)]
    pub fn complete(self) -> u16 {
        self.complete
    }

    /// What a packet that leaves shows of its field. A card adds what stands there to the sum of
    /// all the rest, so that [`pseudo_header`] must stand there: what holds another number is
    /// complete. One that is still to be cut into segments is not, whatever it holds.
    #[inline(always)]
    pub fn of_leaving(self, pseudo_header: u16, is_segments: bool) -> Holds {
        if !is_segments && !same(self.before, pseudo_header) {
            Holds::Everything
        } else {
            Holds::Either
        }
    }

    /// What the kernel holds the field for, as `now` shows, which it became when the kernel was told
    /// of the address alone. Nothing shows where the two addresses are the same to a sum.
    #[inline(always)]
    pub fn of_told(self, now: u16) -> Holds {
        if same(self.complete, self.before) {
            Holds::Either
        } else if same(now, self.complete) {
            Holds::Everything
        } else {
            Holds::PseudoHeader
        }
    }
}

/// The checksum field `sum`, which is complete, after both ports changed, each from and to. Where zero stands for no
/// checksum, a sum of zero is ones. Words are as they lie in memory.
#[inline(always)]
pub fn replace_ports(sum: u16, ports: [(Port, Port); 2], zero_is_none: bool) -> u16 {
    let mut sum = sum;
    for (old, new) in ports {
        let [old, new] = [old, new].map(|port| u16::from_ne_bytes(port.wire()));
        sum = replace(sum, old, new);
    }
    if zero_is_none && sum == 0 { 0xffff } else { sum }
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
