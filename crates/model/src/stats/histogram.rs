//! A histogram of durations whose quantiles are within 3.2 % of the true ones.

use std::time::Duration;

/// Linear buckets per power of two.
const SUB: u64 = 16;
const SUB_BITS: u32 = 4;
/// Durations of 2^27 µs (134 s) and more share the last bucket.
const BUCKETS: usize = ((27 - SUB_BITS as usize) + 1) * SUB as usize;

/// Counts of durations in log-linear buckets of microseconds, kept sparse and sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<(u16, u64)>,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        self.add(bucket(duration), 1);
    }

    /// Adds `count` to a bucket by its index; an index out of range counts as the last.
    pub fn add(&mut self, bucket: u16, count: u64) {
        let bucket = bucket.min((BUCKETS - 1) as u16);
        match self.counts.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.counts[at].1 = self.counts[at].1.saturating_add(count),
            Err(at) => self.counts.insert(at, (bucket, count)),
        }
    }

    /// Adds all counts of another one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            self.add(*bucket, *count);
        }
    }

    pub fn clear(&mut self) {
        self.counts.clear();
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// The buckets in use, `(index, count)` by rising index, for the wire.
    pub fn buckets(&self) -> &[(u16, u64)] {
        &self.counts
    }

    /// The duration that a share `q` (0.0…1.0) of those counted do not exceed; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in &self.counts {
            seen += count;
            if seen >= rank {
                return Some(midpoint(*bucket));
            }
        }
        None
    }
}

fn bucket(duration: Duration) -> u16 {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros < SUB {
        return micros as u16;
    }
    let power = 63 - micros.leading_zeros();
    let sub = (micros >> (power - SUB_BITS)) - SUB;
    let index = u64::from(power - SUB_BITS + 1) * SUB + sub;
    index.min(BUCKETS as u64 - 1) as u16
}

fn midpoint(bucket: u16) -> Duration {
    let (octave, sub) = (u64::from(bucket) / SUB, u64::from(bucket) % SUB);
    if octave == 0 {
        return Duration::from_micros(sub);
    }
    let width = 1u64 << (octave - 1);
    Duration::from_nanos((SUB + sub) * width * 1000 + width * 500)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_recorded_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn the_longest_durations_share_the_last_bucket() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.buckets(), [((BUCKETS - 1) as u16, 1)]);
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_five_percent(
            mut micros in proptest::collection::vec(1u64..60_000_000, 1..400),
            q in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            for m in &micros {
                histogram.record(Duration::from_micros(*m));
            }
            micros.sort_unstable();
            let rank = ((q * micros.len() as f64).ceil() as usize).max(1);
            let truth = micros[rank - 1] as f64;
            let told = histogram.quantile(q).unwrap().as_secs_f64() * 1e6;
            prop_assert!((told - truth).abs() <= truth * 0.05 + 1.0, "{told} for {truth}");
        }

        #[test]
        fn merging_is_counting_together(
            a in proptest::collection::vec(0u64..1_000_000, 0..50),
            b in proptest::collection::vec(0u64..1_000_000, 0..50),
        ) {
            let of = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|m| histogram.record(Duration::from_micros(*m)));
                histogram
            };
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }
}
