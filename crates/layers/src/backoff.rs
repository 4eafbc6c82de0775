//! Exponential backoff with jitter: the waits between tries, and the terms of an ejected endpoint.

use std::time::Duration;

/// `min`, doubled each step up to `max`, plus a random share of up to `jitter` of it, `max` at
/// most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
    /// 0.0 is none. 1.0 means that up to the whole base is added.
    pub jitter: f64,
}

impl Backoff {
    /// The wait at `step`, from 0. A `max` below `min` counts as `min`.
    pub fn delay(&self, step: u32) -> Duration {
        self.delay_with(step, rand::random())
    }

    /// `random` is of 0.0..1.0.
    fn delay_with(&self, step: u32, random: f64) -> Duration {
        let max = self.max.max(self.min);
        let base = self.min.saturating_mul(1 << step.min(31)).min(max);
        let share = if self.jitter.is_finite() { self.jitter.max(0.0) * random } else { 0.0 };
        let extra = Duration::try_from_secs_f64(base.as_secs_f64() * share).unwrap_or(max);
        base.saturating_add(extra).min(max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn doubles_up_to_the_maximum() {
        let backoff = Backoff { min: 25 * MS, max: 250 * MS, jitter: 0.0 };
        let delays: Vec<u128> = (0..6).map(|step| backoff.delay(step).as_millis()).collect();
        assert_eq!(delays, [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff.delay(u32::MAX), 250 * MS);
    }

    #[test]
    fn jitter_adds_a_share_of_the_base() {
        let backoff = Backoff { min: 100 * MS, max: 1000 * MS, jitter: 0.5 };
        assert_eq!(backoff.delay_with(0, 0.0), 100 * MS);
        assert_eq!(backoff.delay_with(0, 0.5), 125 * MS);
        assert_eq!(backoff.delay_with(1, 0.5), 250 * MS);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds_whatever_it_is_given(
            min in 0u64..1 << 40, max: u64, jitter: f64, step: u32, random in 0.0..1.0f64,
        ) {
            let (min, max) = (Duration::from_nanos(min), Duration::from_nanos(max));
            let delay = Backoff { min, max, jitter }.delay_with(step, random);
            prop_assert!(delay >= min && delay <= max.max(min));
        }
    }
}
