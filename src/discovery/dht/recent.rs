//! What was seen lately, without knowing exactly when: two sets, of which the older goes.
//!
//! An item is remembered for one to two spans, or until so many others came; a flood makes memory shorter, never
//! larger.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A bounded memory of what was seen.
#[derive(Debug)]
pub struct Recent<T> {
    new: HashSet<T>,
    old: HashSet<T>,
    turned: Instant,
    span: Duration,
    most: usize,
}

impl<T: Hash + Eq> Recent<T> {
    /// Remembers for `span` at least, unless more than `most` come in that time.
    pub fn new(span: Duration, most: usize, now: Instant) -> Self {
        Self { new: HashSet::new(), old: HashSet::new(), turned: now, span, most }
    }

    /// It was seen.
    pub fn saw(&mut self, item: T, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if age >= self.span || self.new.len() >= self.most {
            self.old = std::mem::take(&mut self.new);
            if age >= self.span * 2 {
                self.old = HashSet::new();
            }
            self.turned = now;
        }
        self.new.insert(item);
    }

    /// Whether it was seen lately.
    pub fn has(&self, item: &T, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.turned);
        (age < self.span * 2 && self.new.contains(item)) || (age < self.span && self.old.contains(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_by_time_and_by_number() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Recent::new(Duration::from_secs(10), 3, start);
        seen.saw(1, at(0));
        assert!(seen.has(&1, at(19)) && !seen.has(&1, at(20)) && !seen.has(&2, at(0)));
        seen.saw(2, at(10));
        assert!(seen.has(&1, at(15)) && seen.has(&2, at(25)) && !seen.has(&1, at(21)));
        seen.saw(3, at(100));
        assert!(!seen.has(&2, at(100)));
        for item in 4..100 {
            seen.saw(item, at(101));
            assert!(seen.new.len() <= 3 && seen.old.len() <= 3);
        }
        assert!(seen.has(&99, at(101)) && seen.has(&97, at(101)) && !seen.has(&50, at(101)));
    }
}
