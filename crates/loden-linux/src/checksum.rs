//! The checksum of the Internet (RFC 1071), by the widest instructions that the processor has.
//!
//! Sums are what the words of two bytes come to in one's complement, as they stand on the wire: the checksum is their complement.

/// The sum of `bytes`; one byte too many counts as the high one of a word (RFC 1071 section 4.1).
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on the order of bytes, if it is put right once (RFC 1071 section 2.B).
    u16::to_be(fold(wide(bytes)))
}

/// The sum of two parts. The second one begins at an even offset.
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// A word less than in `sum`: as adding its complement.
#[must_use]
pub fn subtract(sum: u16, word: u16) -> u16 {
    add(sum, !word)
}

fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The sum of words of four bytes in the machine's order: 2^32 of them, more than a packet has, cannot overflow it.
#[cfg(target_arch = "x86_64")]
fn wide(bytes: &[u8]) -> u64 {
    // What the test costs is lost on a header.
    if bytes.len() >= 64 && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { wide_avx2(bytes) };
    }
    wide_plain(bytes)
}

#[cfg(not(target_arch = "x86_64"))]
fn wide(bytes: &[u8]) -> u64 {
    wide_plain(bytes)
}

/// By instructions that every processor of its kind has: the compiler sees to it.
fn wide_plain(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Written out, since what the compiler makes of the plain loop is slower with AVX2 than without.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_setzero_si256,
        _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
    };
    let zero = _mm256_setzero_si256();
    let mut sums = [zero; 4];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        let half = block.as_ptr().cast::<__m256i>();
        // SAFETY: a block has 64 bytes, and this load needs no alignment.
        let (a, b) = unsafe { (_mm256_loadu_si256(half), _mm256_loadu_si256(half.add(1))) };
        sums[0] = _mm256_add_epi64(sums[0], _mm256_unpacklo_epi32(a, zero));
        sums[1] = _mm256_add_epi64(sums[1], _mm256_unpackhi_epi32(a, zero));
        sums[2] = _mm256_add_epi64(sums[2], _mm256_unpacklo_epi32(b, zero));
        sums[3] = _mm256_add_epi64(sums[3], _mm256_unpackhi_epi32(b, zero));
    }
    let sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
    let lanes = [
        _mm256_extract_epi64::<0>(sum),
        _mm256_extract_epi64::<1>(sum),
        _mm256_extract_epi64::<2>(sum),
        _mm256_extract_epi64::<3>(sum),
    ];
    lanes.iter().map(|lane| lane.cast_unsigned()).sum::<u64>() + wide_plain(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 says it, a word after the other.
    fn by_words(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum, word| add(sum, u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
    }

    /// Of the same class: both zeros are zero.
    fn same(a: u16, b: u16) -> bool {
        a % 0xffff == b % 0xffff
    }

    #[test]
    fn as_the_rfc_has_it() {
        // Section 3, "Numerical Examples".
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0xff; 65536]), 0xffff);
        assert_eq!(sum(&[0xab]), 0xab00);
    }

    proptest! {
        #[test]
        fn every_way_comes_to_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000), from in 0_usize..70, cut in 0_usize..3000,
        ) {
            let bytes = &bytes[from.min(bytes.len())..];
            prop_assert!(same(sum(bytes), by_words(bytes)));
            prop_assert!(same(u16::to_be(fold(wide_plain(bytes))), by_words(bytes)));
            let (a, b) = bytes.split_at((cut & !1).min(bytes.len()));
            prop_assert!(same(add(sum(a), sum(b)), sum(bytes)));
            prop_assert!(same(subtract(sum(bytes), sum(b)), sum(a)));
        }
    }
}
