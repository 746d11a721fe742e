//! Numbers that follow from a text, the same here and in the checker (`checker.py`): SHA-256 of the text and a counter,
//! eight numbers of 32 bits from each. Chance that can be had again.

use sha2::{Digest, Sha256};

/// A source of numbers.
#[derive(Debug)]
pub(super) struct Draw {
    key: String,
    counter: u32,
    numbers: Vec<u32>,
}

// === impl Draw ===

impl Draw {
    /// The numbers of `key`.
    pub(super) fn new(key: String) -> Draw {
        Draw { key, counter: 0, numbers: Vec::new() }
    }

    /// The next number, from 0 to `limit` - 1; 0 if `limit` is 0.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        loop {
            if let Some(number) = self.numbers.pop() {
                return number.checked_rem(limit).unwrap_or(0);
            }
            let digest = Sha256::digest(format!("{}#{}", self.key, self.counter));
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            self.numbers = digest.chunks(4).map(number).rev().collect();
            self.counter += 1;
        }
    }

    /// True in one of `n` cases.
    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// `length` bytes that follow from a text.
pub(super) fn fill(key: &str, length: usize) -> Vec<u8> {
    let digest = Sha256::digest(key);
    digest.iter().copied().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_gives_the_same_numbers_and_another_gives_others() {
        let numbers = |key: &str| {
            let mut draw = Draw::new(key.to_owned());
            (0..20).map(|_| draw.below(1 << 31)).collect::<Vec<_>>()
        };
        assert_eq!(numbers("1/2"), numbers("1/2"));
        assert_ne!(numbers("1/2"), numbers("1/3"));
        assert_eq!(fill("x", 70)[..32], fill("x", 70)[32..64]);
    }
}
