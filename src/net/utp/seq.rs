//! Sequence numbers: 16 bits that wrap around, compared by which is nearer.

use std::fmt;

/// A packet's number within its connection and direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u16);

impl Seq {
    /// The number `n` further on.
    pub fn plus(self, n: u16) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` before.
    pub fn minus(self, n: u16) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// How far this one is ahead of `other`; negative when it is behind. Half of all numbers are on each side.
    pub fn ahead_of(self, other: Self) -> i32 {
        i32::from(self.0.wrapping_sub(other.0) as i16)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        for (a, b, ahead) in [
            (1, 0, 1),
            (0, 1, -1),
            (0, 65_535, 1),
            (65_535, 0, -1),
            (5, 65_530, 11),
            (32_767, 0, 32_767),
            (32_768, 0, -32_768),
        ] {
            assert_eq!(Seq(a).ahead_of(Seq(b)), ahead, "{a} {b}");
        }
        for start in 0..=u16::MAX {
            for n in [0, 1, 2, 3, 1000, 32_767] {
                assert_eq!(Seq(start).plus(n).ahead_of(Seq(start)), i32::from(n));
                assert_eq!(Seq(start).minus(n).plus(n), Seq(start));
            }
        }
    }
}
