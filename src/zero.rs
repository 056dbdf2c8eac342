//! Whether bytes are all zero.

const LANES: usize = 8;
const STEP: usize = LANES * 8;

/// Whether every byte of `buf` is zero; an empty one is.
#[must_use]
pub fn is_zero(buf: &[u8]) -> bool {
    // Most buffers that are not zero show it in the first bytes.
    let (head, rest) = buf.split_at(buf.len().min(16));
    if head.iter().any(|byte| *byte != 0) {
        return false;
    }
    let mut pages = rest.chunks_exact(4096);
    pages.by_ref().all(|page| or_lanes(page) == 0) && or_lanes(pages.remainder()) == 0
}

/// The OR of all bytes, folded into one word: independent lanes, so that the compiler uses wide registers.
fn or_lanes(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; LANES];
    let mut steps = bytes.chunks_exact(STEP);
    for step in steps.by_ref() {
        for (lane, word) in lanes.iter_mut().zip(step.as_chunks::<8>().0) {
            *lane |= u64::from_ne_bytes(*word);
        }
    }
    let tail = steps.remainder().iter().fold(0, |all, byte| all | u64::from(*byte));
    lanes.iter().fold(tail, |all, lane| all | lane)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_bit_anywhere_is_seen_at_every_length() {
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 80, 4095, 4096, 4112, 4113, 8300] {
            let mut buf = vec![0; len];
            assert!(is_zero(&buf), "{len} zero bytes");
            for at in (0..len).step_by(7).chain(len.checked_sub(1)) {
                buf[at] = 0x80;
                assert!(!is_zero(&buf), "byte {at} of {len}");
                buf[at] = 0;
            }
        }
    }
}
