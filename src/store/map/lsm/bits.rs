//! Numbers of any width in a byte string, the least significant bit first.

/// Appends numbers.
#[derive(Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    pending: u128,
    pending_bits: u32,
}

impl BitWriter {
    pub(super) fn put(&mut self, value: u64, width: u32) {
        debug_assert!(width == 64 || value >> width == 0);
        self.pending |= u128::from(value) << self.pending_bits;
        self.pending_bits += width;
        while self.pending_bits >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.pending_bits -= 8;
        }
    }

    /// So many ones, and a zero behind them.
    pub(super) fn put_unary(&mut self, mut value: u64) {
        while value >= 32 {
            self.put((1 << 32) - 1, 32);
            value -= 32;
        }
        self.put((1 << value) - 1, value as u32 + 1);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.pending_bits > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// Reads `width` bits at bit `at`; zeros behind the end.
pub(super) fn get(bytes: &[u8], at: usize, width: u32) -> u64 {
    if width == 0 {
        return 0;
    }
    let (first, shift) = (at / 8, at % 8);
    let window = match bytes.get(first..first + 16).and_then(|window| window.try_into().ok()) {
        Some(window) => u128::from_le_bytes(window),
        None => {
            let mut window = [0; 16];
            let rest = bytes.get(first..).unwrap_or(&[]);
            let length = rest.len().min(16);
            window[..length].copy_from_slice(&rest[..length]);
            u128::from_le_bytes(window)
        }
    };
    let mask = if width >= 64 { u64::MAX } else { (1 << width) - 1 };
    (window >> shift) as u64 & mask
}

/// Reads a number in ones from bit `at`, and says how many bits it takes; none when there is no end.
pub(super) fn get_unary(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    while (at + value) / 8 < bytes.len() {
        let ones = (!get(bytes, at + value, 32)).trailing_zeros().min(32) as usize;
        value += ones;
        if ones < 32 {
            return ((at + value) / 8 < bytes.len()).then_some((value as u64, value + 1));
        }
    }
    None
}

/// Bits that a number takes.
pub(super) fn width_of(value: u64) -> u32 {
    64 - value.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let numbers: Vec<(u64, u32)> =
            (0..=64u32).map(|width| (if width == 0 { 0 } else { u64::MAX >> (64 - width) }, width)).collect();
        let mut writer = BitWriter::default();
        numbers.iter().for_each(|(value, width)| writer.put(*value, *width));
        (0..100).for_each(|value| writer.put_unary(value));
        let bytes = writer.finish();
        let mut at = 0;
        for (value, width) in numbers {
            assert_eq!(get(&bytes, at, width), value);
            assert_eq!(width_of(value), width);
            at += width as usize;
        }
        for value in 0..100 {
            let (read, bits) = get_unary(&bytes, at).unwrap();
            assert_eq!((read, bits), (value, value as usize + 1));
            at += bits;
        }
        assert_eq!(get_unary(&[0xff; 3], 0), None);
    }
}
