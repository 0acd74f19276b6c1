//! Hashes of tuples.

/// SipHash-1-3 of two words: for choices that nobody outside may foresee (ports).
///
/// J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.
#[inline(always)]
pub const fn secret(seed: [u64; 2], words: [u64; 2]) -> u64 {
    let v = absorb(absorb(start(seed), words[0]), words[1]);
    // The last word holds the length of the message, 16 bytes, in its top byte.
    finish(absorb(v, 16 << 56))
}

/// SipHash-1-3 of 15 bytes, the first ones of two words: a message authentication code. The byte
/// less spares a round, for the length needs no word of its own.
///
/// One round a word and three at the end, where SipHash-2-4 takes two and four: nothing is known
/// that tells either from chance with fewer tries than guessing the tag takes (C. Dobraunig,
/// F. Mendel, M. Schläffer, "Differential Cryptanalysis of SipHash", 2014: a collision inside
/// takes 2^167 messages and longer ones), every try is a packet that is counted, and each round is
/// paid for by every packet.
#[inline(always)]
pub const fn tag(key: [u64; 2], words: [u64; 2]) -> u64 {
    let last = words[1] & (u64::MAX >> 8) | 15 << 56;
    finish(absorb(absorb(start(key), words[0]), last))
}

#[inline(always)]
const fn start(key: [u64; 2]) -> [u64; 4] {
    [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ]
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(v);
    v[0] ^= word;
    v
}

#[inline(always)]
const fn finish(mut v: [u64; 4]) -> u64 {
    v[2] ^= 0xff;
    v = round(round(round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// A quick hash of two words: for spreading flows, where all muxes must agree.
#[inline(always)]
pub const fn spread(seed: u64, words: [u64; 2]) -> u64 {
    // Two rounds of multiply and fold the high half back (the finalizer of MurmurHash3).
    let mut h = (seed ^ words[0]).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 32) ^ words[1]).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 32)
}

/// A number below `bound`, evenly spread over the low 32 bits of `hash`.
#[inline(always)]
pub const fn below(hash: u32, bound: u32) -> u32 {
    ((hash as u64 * bound as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_secret_hash_is_siphash(seed: [u64; 2], words: [u64; 2]) {
            let mut other = siphasher::sip::SipHasher13::new_with_keys(seed[0], seed[1]);
            other.write_u64(words[0]);
            other.write_u64(words[1]);
            prop_assert_eq!(super::secret(seed, words), other.finish());
        }
    }

    proptest! {
        #[test]
        fn the_tag_is_siphash_of_fifteen_bytes(key: [u64; 2], bytes: [u8; 15]) {
            let mut other = siphasher::sip::SipHasher13::new_with_keys(key[0], key[1]);
            other.write(&bytes);
            let push = |sum, byte: &u8| sum << 8 | u64::from(*byte);
            let word = |from: &[u8]| from.iter().rev().fold(0, push);
            let words = [word(&bytes[..8]), word(&bytes[8..])];
            prop_assert_eq!(super::tag(key, words), other.finish());
            prop_assert_eq!(super::tag(key, [words[0], words[1] | 0xab << 56]), other.finish());
        }
    }

    #[test]
    fn below_reaches_both_ends() {
        assert_eq!(super::below(0, 7), 0);
        assert_eq!(super::below(u32::MAX, 7), 6);
    }
}
