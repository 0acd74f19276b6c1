//! Internet checksums (RFC 1071) and how they change with a field (RFC 1624).

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
