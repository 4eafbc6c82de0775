//! Draws for shares of traffic that keep closer to the share than chance does.
//!
//! Of ten thousand random draws for a share of 75 %, one run in fifty is more than a point off. Steps
//! of the golden ratio around a circle are spread as evenly as steps can be, and so is every n-th of
//! them, so that requests which take turns get the same shares. Where they begin is random: many
//! proxies don't march in step.
//!
//! But all of them do march: of two that are drawn once for each request, each tells the other. So they
//! are for splits only, and what else is drawn for the same requests has a [`Deck`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;

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
}

/// Cards of a deck.
const CARDS: u64 = 1 << CARD_BITS;
const CARD_BITS: u32 = 6;

/// A deck in which each card stands for an equal part of all numbers, dealt to its end in an order that
/// is random, again and again: each round has the shares, and no other draw tells what comes next.
#[derive(Debug)]
pub(crate) struct Deck {
    dealt: AtomicU64,
    orders: RandomState,
}

impl Default for Deck {
    fn default() -> Self {
        let seed = || rand::random();
        let orders = RandomState::with_seeds(seed(), seed(), seed(), seed());
        Self { dealt: AtomicU64::new(0), orders }
    }
}

impl Deck {
    /// Of all numbers, one.
    pub(crate) fn next(&self) -> u32 {
        let dealt = self.dealt.fetch_add(1, Relaxed);
        let order = self.orders.hash_one(dealt / CARDS);
        // By an odd factor every card comes once in a round.
        let card = (dealt.wrapping_mul(order | 1).wrapping_add(order >> 32) % CARDS) as u32;
        (card << (u32::BITS - CARD_BITS)) | (rand::random::<u32>() >> CARD_BITS)
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::route::Ratio;

    use super::*;

    const TENTH: Ratio = Ratio { numerator: 1, denominator: 10 };

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

    #[test]
    fn decks_keep_their_shares() {
        for _ in 0..100 {
            let deck = Deck::default();
            let hit = (0..1_000).filter(|_| TENTH.covers(deck.next())).count();
            assert!((80..=120).contains(&hit), "{hit}");
        }
    }

    #[test]
    fn of_two_that_are_drawn_for_the_same_requests_neither_tells_the_other() {
        const REQUESTS: usize = 200_000;
        let (draws, decks) = (Draws::default(), [Deck::default(), Deck::default()]);
        let drawn: Vec<_> = (0..REQUESTS)
            .map(|_| {
                let canary = draws.below(10) == 0;
                (canary, decks.each_ref().map(|deck| TENTH.covers(deck.next())))
            })
            .collect();
        let both = |of: fn(&(bool, [bool; 2])) -> bool| drawn.iter().filter(|of_| of(of_)).count();
        for (pair, count) in [
            ("a canary and a mirror", both(|(canary, [mirror, _])| *canary && *mirror)),
            ("two filters", both(|(_, [one, other])| *one && *other)),
        ] {
            let expected = REQUESTS / 100;
            assert!(count.abs_diff(expected) < expected / 4, "{pair}: {count} of {expected}");
        }
    }
}
