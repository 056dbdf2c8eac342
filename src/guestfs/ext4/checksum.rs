//! The checksums of ext4 and of its journal.

/// CRC-32C, inverted neither before nor after: one call goes on where another one ended.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The same over `bytes` with zeros in place of `len` bytes at `hole`, where the checksum itself is kept.
pub(super) fn crc32c_around(seed: u32, bytes: &[u8], hole: usize, len: usize) -> u32 {
    const ZEROS: [u8; 8] = [0; 8];
    let (before, rest) = bytes.split_at(hole.min(bytes.len()));
    let len = len.min(rest.len()).min(ZEROS.len());
    crc32c(crc32c(crc32c(seed, before), &ZEROS[..len]), &rest[len..])
}

/// CRC-16 with the polynomial 0x8005, bits reversed: group descriptors before CRC-32C came.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xa001 })
    })
}

/// CRC-32 with its bits in their own order, not inverted: the first checksums of the journal.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x04c1_1db7;
    bytes.iter().fold(seed, |crc, byte| {
        let crc = crc ^ u32::from(*byte) << 24;
        (0..8).fold(crc, |crc, _| if crc >> 31 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_values_of_the_catalogue_come_out() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(!0, b"123456789"), 0x4b37);
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
    }

    #[test]
    fn a_hole_counts_as_zeros() {
        let whole = [1, 2, 0, 0, 0, 0, 7];
        assert_eq!(crc32c_around(5, &[1, 2, 3, 4, 5, 6, 7], 2, 4), crc32c(5, &whole));
        assert_eq!(crc32c_around(5, &[1, 2, 3], 2, 4), crc32c(5, &[1, 2, 0]));
        assert_eq!(crc32c_around(5, &[1, 2, 3], 9, 4), crc32c(5, &[1, 2, 3]));
    }
}
