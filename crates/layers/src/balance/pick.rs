//! Picking among the endpoints in service, which are known here by their index and weight.
//!
//! *Two at random*: with equal weights, two distinct ones. With unequal weights, two draws in
//! proportion to the weights, which may be the same one; so an idle set is used in proportion. The
//! costs then divide only what is pending by the weight, since a whole cost divided by it would
//! give the heaviest everything while nobody is busy.
//!
//! *In turn*: earliest deadline first, each pick moving an endpoint's deadline by the inverse of
//! its weight. The turns begin at random, so that many proxies don't march in step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;
use rand::rngs::SmallRng;

#[derive(Debug, Default)]
pub(super) struct Picker {
    candidates: Vec<Candidate>,
    /// Sum of the weights.
    total: u64,
    uniform: bool,
    turns: BinaryHeap<Reverse<Turn>>,
}

#[derive(Debug)]
struct Candidate {
    index: usize,
    weight: u64,
    /// Weights of this one and those before it.
    up_to: u64,
    /// Weight over the mean weight.
    share: f64,
}

/// Ordered by deadline; the index breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    deadline: u128,
    index: usize,
    period: u64,
}

/// The period of weight 1; that of the largest weight is still exact to a part in a thousand.
const PERIOD: u64 = 1 << 42;

impl Picker {
    /// Over `(index, weight)`, weights above 0. With a source of randomness for picking in turn.
    pub(super) fn new(in_service: &[(usize, u32)], turns: Option<&mut SmallRng>) -> Self {
        let total: u64 = in_service.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mean = total as f64 / in_service.len().max(1) as f64;
        let mut up_to = 0;
        let candidate = |(index, weight): &(usize, u32)| {
            let weight = u64::from(*weight);
            up_to += weight;
            Candidate { index: *index, weight, up_to, share: weight as f64 / mean }
        };
        let candidates: Vec<_> = in_service.iter().map(candidate).collect();
        let uniform = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let turn = |rng: &mut SmallRng, candidate: &Candidate| {
            let period = PERIOD / candidate.weight;
            let deadline = u128::from(rng.random_range(0..period));
            Reverse(Turn { deadline, index: candidate.index, period })
        };
        let turns = turns.map(|rng| candidates.iter().map(|c| turn(rng, c)).collect());
        Self { candidates, total, uniform, turns: turns.unwrap_or_default() }
    }

    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// `cost` is given an index and its weight over the mean. Of equally costly ones the first
    /// drawn is taken.
    pub(super) fn cheaper_of_two(
        &self,
        rng: &mut SmallRng,
        excluding: bool,
        excluded: impl Fn(usize) -> bool,
        cost: impl Fn(usize, f64) -> f64,
    ) -> Option<usize> {
        let drawn = excluding.then(|| self.draw_two_except(rng, excluded)).flatten();
        let (first, second) = match drawn {
            Some(two) => two,
            None => self.draw_two(rng)?,
        };
        if std::ptr::eq(first, second) {
            return Some(first.index);
        }
        let cheaper = cost(first.index, first.share) <= cost(second.index, second.share);
        Some(if cheaper { first.index } else { second.index })
    }

    fn draw_two(&self, rng: &mut SmallRng) -> Option<(&Candidate, &Candidate)> {
        let count = self.candidates.len();
        if count < 2 {
            let only = self.candidates.first()?;
            return Some((only, only));
        }
        if !self.uniform {
            return Some((self.draw(rng), self.draw(rng)));
        }
        let first = rng.random_range(0..count);
        let second = rng.random_range(0..count - 1);
        let second = if second >= first { second + 1 } else { second };
        Some((&self.candidates[first], &self.candidates[second]))
    }

    /// One in proportion to the weights. There is one.
    fn draw(&self, rng: &mut SmallRng) -> &Candidate {
        let ticket = rng.random_range(0..self.total);
        &self.candidates[self.candidates.partition_point(|candidate| candidate.up_to <= ticket)]
    }

    /// For retries, which are few: a walk over all, in proportion to the weights. `None` if all are
    /// excluded.
    fn draw_two_except(
        &self,
        rng: &mut SmallRng,
        excluded: impl Fn(usize) -> bool,
    ) -> Option<(&Candidate, &Candidate)> {
        let (mut seen, mut first, mut second) = (0, None, None);
        for candidate in self.candidates.iter().filter(|candidate| !excluded(candidate.index)) {
            seen += candidate.weight;
            for drawn in [&mut first, &mut second] {
                if rng.random_range(0..seen) < candidate.weight {
                    *drawn = Some(candidate);
                }
            }
        }
        first.zip(second)
    }

    pub(super) fn next_in_turn(&mut self, excluded: impl Fn(usize) -> bool) -> Option<usize> {
        let mut passed_over = Vec::new();
        let mut next = None;
        while let Some(Reverse(turn)) = self.turns.pop() {
            if !excluded(turn.index) {
                next = Some(turn);
                break;
            }
            passed_over.push(turn);
        }
        // All are excluded: the one whose turn it was. It keeps its place in `passed_over`.
        let next = next.or_else(|| (!passed_over.is_empty()).then(|| passed_over.remove(0)));
        self.turns.extend(passed_over.into_iter().map(Reverse));
        let mut turn = next?;
        turn.deadline += u128::from(turn.period);
        self.turns.push(Reverse(turn));
        Some(turn.index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(7)
    }

    fn weighted(weights: &[u32]) -> Vec<(usize, u32)> {
        weights.iter().copied().enumerate().collect()
    }

    fn shares(picks: usize, count: usize, mut pick: impl FnMut() -> usize) -> Vec<f64> {
        let mut shares = vec![0.0; count];
        for _ in 0..picks {
            shares[pick()] += 1.0 / picks as f64;
        }
        shares
    }

    fn none(_: usize) -> bool {
        false
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// After any number of turns, nobody is more than two turns away from its due.
        #[test]
        fn turns_are_in_proportion_to_the_weights(
            weights in prop::collection::vec(1u32..1000, 1..10), picks in 1usize..2000,
        ) {
            let mut picker = Picker::new(&weighted(&weights), Some(&mut rng()));
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            let shares = shares(picks, weights.len(), || picker.next_in_turn(none).unwrap());
            for (share, weight) in shares.iter().zip(&weights) {
                let turns = share * picks as f64;
                let due = f64::from(*weight) / total * picks as f64;
                prop_assert!((turns - due).abs() < 2.0 + weights.len() as f64 * f64::from(*weight) / total,
                    "{} turns, due {}", turns, due);
            }
        }
    }

    #[test]
    fn turns_pass_over_the_excluded() {
        let mut picker = Picker::new(&weighted(&[1, 1, 1]), Some(&mut rng()));
        for _ in 0..10 {
            assert_ne!(picker.next_in_turn(|index| index == 1).unwrap(), 1);
        }
        assert!(picker.next_in_turn(|_| true).is_some(), "rather the same again than none");
        assert_eq!(Picker::new(&[], Some(&mut rng())).next_in_turn(none), None);
    }

    #[test]
    fn the_cheaper_one_is_taken() {
        let picker = Picker::new(&weighted(&[5, 5]), None);
        for _ in 0..20 {
            let pick = picker.cheaper_of_two(&mut rng(), false, none, |index, _| index as f64);
            assert_eq!(pick, Some(0));
        }
    }

    #[test]
    fn idle_ones_are_used_in_proportion_to_the_weights() {
        for weights in [&[1, 1][..], &[1, 1, 1, 1], &[2, 1], &[10_000, 5_000, 1]] {
            let picker = Picker::new(&weighted(weights), None);
            let mut rng = rng();
            let shares = shares(20_000, weights.len(), || {
                picker.cheaper_of_two(&mut rng, false, none, |_, _| 1.0).unwrap()
            });
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (share, weight) in shares.iter().zip(weights) {
                assert!(
                    (share - f64::from(*weight) / total).abs() < 0.02,
                    "{weights:?} {shares:?}"
                );
            }
        }
    }

    #[test]
    fn excluded_ones_are_not_drawn_unless_all_are() {
        for weights in [&[1, 1, 1][..], &[3, 2, 1]] {
            let picker = Picker::new(&weighted(weights), None);
            let mut rng = rng();
            for _ in 0..50 {
                let pick = picker.cheaper_of_two(&mut rng, true, |index| index != 2, |_, _| 1.0);
                assert_eq!(pick, Some(2));
            }
            assert!(picker.cheaper_of_two(&mut rng, true, |_| true, |_, _| 1.0).is_some());
        }
        assert_eq!(Picker::default().cheaper_of_two(&mut rng(), false, none, |_, _| 1.0), None);
    }
}
