//! Draws for shares of traffic that keep closer to the share than chance does.
//!
//! Of ten thousand random draws for a share of 75 %, one run in fifty is more than a point off. Steps
//! of the golden ratio around a circle are spread as evenly as steps can be, and so is every n-th of
//! them, so that requests which take turns get the same shares. Where they begin is random: many
//! proxies don't march in step.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// 2⁶⁴ divided by the golden ratio.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Debug)]
pub(crate) struct Draws(AtomicU64);

impl Default for Draws {
    fn default() -> Self {
        Self(AtomicU64::new(rand::random()))
    }
}

impl Draws {
    /// Of all numbers below `bound`, one.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        let draw = self.0.fetch_add(STEP, Relaxed);
        ((u128::from(draw) * u128::from(bound)) >> 64) as u64
    }

    /// Of all numbers, one.
    pub(crate) fn next(&self) -> u32 {
        (self.0.fetch_add(STEP, Relaxed) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_closely_by_all_and_by_every_nth() {
        for every in [1, 2, 3, 7, 10] {
            let draws = Draws::default();
            let of = (0..10_000 * every).filter_map(|number| {
                let draw = draws.below(100);
                (number % every == 0).then_some(draw)
            });
            let share = of.filter(|draw| *draw < 75).count();
            assert!((7_490..=7_510).contains(&share), "{share} of 10000, every {every}");
        }
    }
}
