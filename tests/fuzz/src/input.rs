//! The bytes of an input, taken as decisions. Behind their end all decisions are zero.

pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`, which is at most 65536.
    pub fn below(&mut self, end: u64) -> u64 {
        let wide = if end > 256 { u64::from(self.byte()) << 8 } else { 0 };
        (wide | u64::from(self.byte())) % end.max(1)
    }

    /// A number of `width` bytes.
    pub fn number(&mut self, width: usize) -> u64 {
        (0..width).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }

    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number that is likely to matter: a border, a power of two, or anything.
    pub fn striking(&mut self, border: u64) -> u64 {
        let small = u64::from(self.byte());
        match self.byte() % 10 {
            0 => small,
            1 => border.wrapping_add(small),
            2 => border.wrapping_sub(small),
            3 => 1 << (small % 64),
            4 => u64::MAX - small,
            5 => (1 << (small % 64)) - 1,
            6 => border.wrapping_mul(small),
            7 => 1 << 63 | border.wrapping_mul(small),
            8 => 1 << 62 | border.wrapping_mul(small),
            _ => self.number(8),
        }
    }
}
