//! The order in which the trackers of a torrent are tried (BEP 12). Pure.
//!
//! Trackers are named by their place in the caller's list. Within a tier the order is random at the start, and
//! a tracker that worked goes to the front of its tier.

/// Tiers of trackers, in the order of trying.
#[derive(Debug, Clone, Default)]
pub struct TierOrder {
    tiers: Vec<Vec<usize>>,
}

impl TierOrder {
    /// The order of `tiers`; `shuffle` is called on each.
    pub fn new(mut tiers: Vec<Vec<usize>>, mut shuffle: impl FnMut(&mut [usize])) -> Self {
        tiers.iter_mut().for_each(|tier| shuffle(tier));
        Self { tiers }
    }

    /// All of them, first to try first.
    pub fn order(&self) -> Vec<usize> {
        self.tiers.iter().flatten().copied().collect()
    }

    /// Notes that this one worked: it is the first of its tier from now on.
    pub fn worked(&mut self, tracker: usize) {
        for tier in &mut self.tiers {
            if let Some(found) = tier.iter().position(|t| *t == tracker)
                && let Some(head) = tier.get_mut(..=found)
            {
                head.rotate_right(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worked_goes_to_the_front_of_its_own_tier() {
        let mut order = TierOrder::new(vec![vec![0, 1, 2], vec![], vec![3, 4]], |tier| tier.reverse());
        assert_eq!(order.order(), [2, 1, 0, 4, 3]);
        order.worked(0);
        assert_eq!(order.order(), [0, 2, 1, 4, 3]);
        order.worked(3);
        order.worked(99);
        assert_eq!(order.order(), [0, 2, 1, 3, 4]);
    }
}
