//! Numbers that nobody can guess, and that a test can repeat.
//!
//! [`Draw`] hashes a secret with a counter. From a random secret what comes is as good as random, for transaction
//! ids and the secrets of tokens; from a fixed one a whole network plays the same game each time. So the node needs
//! no other source of chance, and stays pure.

use crate::hash::sha1;

/// A sequence of numbers that follow from a secret.
#[derive(Clone)]
pub struct Draw {
    /// The secret, and behind it how many were drawn.
    state: [u8; 40],
    drawn: u64,
}

impl Draw {
    /// The sequence of `secret`.
    pub fn new(secret: [u8; 32]) -> Self {
        let mut state = [0; 40];
        state[..32].copy_from_slice(&secret);
        Self { state, drawn: 0 }
    }

    /// The next 20 bytes.
    pub fn bytes(&mut self) -> [u8; 20] {
        self.drawn = self.drawn.wrapping_add(1);
        self.state[32..].copy_from_slice(&self.drawn.to_be_bytes());
        sha1(&self.state)
    }

    /// The next number.
    pub fn number(&mut self) -> u32 {
        let bytes = self.bytes();
        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() as usize).checked_rem(bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_one_sequence() {
        let (mut one, mut two, mut other) = (Draw::new([1; 32]), Draw::new([1; 32]), Draw::new([2; 32]));
        let drawn: Vec<_> = (0..100).map(|_| one.number()).collect();
        assert_eq!(drawn, (0..100).map(|_| two.number()).collect::<Vec<_>>());
        assert_ne!(drawn[0], other.number());
        let different: std::collections::HashSet<_> = drawn.iter().collect();
        assert_eq!(different.len(), 100);
        assert!((0..1000).all(|_| one.below(7) < 7));
        assert_eq!(one.below(0), 0);
    }
}
