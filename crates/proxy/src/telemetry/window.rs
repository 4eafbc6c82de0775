//! Ten minutes of figures in little memory: the last minute by seconds, the rest by tens of them.
//!
//! The running second is counted in plain [`Totals`], whose buffers are reused. A second that is
//! over is packed into a few dozen bytes, because a proxy may keep thousands of series and looks at
//! old seconds only when somebody asks.

use std::collections::VecDeque;

use mesh_model::Reason;
use mesh_model::stats::{Histogram, Totals, WINDOW_SECONDS};

/// Length of the slots that older seconds are merged into.
const COARSE: u64 = 10;
/// Seconds kept one by one at least, so that a minute is exact.
const FINE: u64 = 65;

/// A sliding window of [`Totals`]: at most 75 slots of a second and 61 of ten, however busy.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The second counted in now.
    second: u64,
    running: Totals,
    /// Oldest first.
    fine: VecDeque<Slot>,
    coarse: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    start: u64,
    packed: Box<[u8]>,
}

impl Window {
    /// The totals of the second `now`, to add to. Time going backwards counts as standing still.
    pub(super) fn at(&mut self, now: u64) -> &mut Totals {
        if now > self.second {
            self.turn(now);
        }
        &mut self.running
    }

    /// Sums over the `seconds` whole seconds before `now`. The running one is left out, so that a
    /// rate is not diluted by a second that is not over.
    pub(super) fn sum(&self, now: u64, seconds: u64) -> Totals {
        let from = now.saturating_sub(seconds.min(WINDOW_SECONDS));
        let mut sums = Sums::default();
        let slots = self.coarse.iter().map(|slot| (slot, COARSE));
        for (slot, span) in slots.chain(self.fine.iter().map(|slot| (slot, 1))) {
            if slot.start >= from && slot.start + span <= now {
                sums.unpack(&slot.packed);
            }
        }
        if (from..now).contains(&self.second) {
            sums.add(&self.running);
        }
        sums.totals()
    }

    /// The last second anything was counted in.
    pub(super) fn last_used(&self) -> u64 {
        self.second
    }

    /// Puts the running second away, merges what is too fine and forgets what is too old.
    fn turn(&mut self, now: u64) {
        if self.running != Totals::default() {
            let slot = Slot { start: self.second, packed: pack(&self.running) };
            self.fine.push_back(slot);
            clear(&mut self.running);
        }
        self.second = now;
        let group = |slot: &Slot| slot.start - slot.start % COARSE;
        while let Some(start) = self.fine.front().map(group) {
            if start + COARSE + FINE > now {
                break;
            }
            let mut sums = Sums::default();
            while let Some(slot) = self.fine.pop_front_if(|slot| group(slot) == start) {
                sums.unpack(&slot.packed);
            }
            self.coarse.push_back(Slot { start, packed: pack(&sums.totals()) });
        }
        let old = |slot: &mut Slot| slot.start + COARSE + WINDOW_SECONDS <= now;
        while self.coarse.pop_front_if(old).is_some() {}
    }
}

/// Empties the totals and keeps their buffers.
fn clear(totals: &mut Totals) {
    let Totals { mut latency, mut first_byte, mut reasons, .. } = std::mem::take(totals);
    latency.clear();
    first_byte.clear();
    reasons.clear();
    *totals = Totals { latency, first_byte, reasons, ..Totals::default() };
}

/// Totals with the histograms spread out, which are quicker to add to.
#[derive(Default)]
struct Sums {
    /// All but histograms.
    totals: Totals,
    latency: Vec<u64>,
    first_byte: Vec<u64>,
}

impl Sums {
    fn add(&mut self, other: &Totals) {
        self.unpack(&pack(other));
    }

    fn unpack(&mut self, packed: &[u8]) {
        let mut numbers = Numbers(packed);
        for value in scalars_mut(&mut self.totals) {
            *value += numbers.next();
        }
        for dense in [&mut self.latency, &mut self.first_byte] {
            let mut bucket = 0;
            for _ in 0..numbers.next() {
                bucket += numbers.next() as usize;
                if dense.len() <= bucket {
                    dense.resize(bucket + 1, 0);
                }
                dense[bucket] += numbers.next();
            }
        }
        for _ in 0..numbers.next() {
            let (reason, count) = (numbers.next(), numbers.next());
            if let Some(reason) = Reason::ALL.get(reason as usize) {
                self.totals.add_reason(*reason, count);
            }
        }
    }

    fn totals(mut self) -> Totals {
        self.totals.latency = sparse(&self.latency);
        self.totals.first_byte = sparse(&self.first_byte);
        self.totals
    }
}

fn sparse(dense: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    for (bucket, count) in (0..).zip(dense).filter(|(_, count)| **count > 0) {
        histogram.add(bucket, *count);
    }
    histogram
}

/// The plain numbers, in the order they are packed in; the same as in [`scalars_mut`].
fn scalars(totals: &Totals) -> [u64; 12] {
    let [c1, c2, c3, c4, c5] = totals.classes;
    let Totals { success, failure, retries, request_bytes, response_bytes, .. } = *totals;
    let Totals { tcp_opened: opened, tcp_closed: closed, .. } = *totals;
    [success, failure, c1, c2, c3, c4, c5, retries, request_bytes, response_bytes, opened, closed]
}

fn scalars_mut(totals: &mut Totals) -> [&mut u64; 12] {
    let [c1, c2, c3, c4, c5] = &mut totals.classes;
    let Totals { success, failure, retries, request_bytes, response_bytes, .. } = totals;
    let Totals { tcp_opened: opened, tcp_closed: closed, .. } = totals;
    [success, failure, c1, c2, c3, c4, c5, retries, request_bytes, response_bytes, opened, closed]
}

/// All numbers one after the other in the order of [`Sums::unpack`], small ones in one byte.
fn pack(totals: &Totals) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(64);
    for value in scalars(totals) {
        put(&mut bytes, value);
    }
    for histogram in [&totals.latency, &totals.first_byte] {
        put(&mut bytes, histogram.buckets().len() as u64);
        let mut last = 0;
        for (bucket, count) in histogram.buckets() {
            put(&mut bytes, u64::from(bucket - last));
            put(&mut bytes, *count);
            last = *bucket;
        }
    }
    put(&mut bytes, totals.reasons.len() as u64);
    for (reason, count) in &totals.reasons {
        put(&mut bytes, *reason as u64);
        put(&mut bytes, *count);
    }
    bytes.into_boxed_slice()
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads what [`put`] wrote; zeros behind the end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else { break };
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_model::stats;
    use proptest::prelude::*;

    use super::*;

    fn count(window: &mut Window, second: u64) {
        window.at(second).success += 1;
    }

    #[test]
    fn the_running_second_is_left_out() {
        let mut window = Window::default();
        count(&mut window, 100);
        count(&mut window, 101);
        assert_eq!(window.sum(101, 60).success, 1);
        assert_eq!(window.sum(102, 60).success, 2);
    }

    #[test]
    fn a_minute_is_exact_and_ten_minutes_stay_bounded() {
        let mut window = Window::default();
        for second in 0..2_000 {
            count(&mut window, second);
            assert!(window.fine.len() <= 75, "{} fine slots", window.fine.len());
            assert!(window.coarse.len() <= 61, "{} coarse slots", window.coarse.len());
            if second > 600 {
                assert_eq!(window.sum(second, 1).success, 1);
                assert_eq!(window.sum(second, 60).success, 60);
                let ten_minutes = window.sum(second, 600).success;
                assert!((590..=600).contains(&ten_minutes), "{ten_minutes}");
            }
        }
    }

    #[test]
    fn gaps_count_nothing() {
        let mut window = Window::default();
        count(&mut window, 5);
        count(&mut window, 5_000);
        assert_eq!(window.sum(5_001, 600).success, 1);
        assert_eq!(window.sum(5_100, 60).success, 0);
        count(&mut window, 9_000);
        assert!(window.fine.is_empty() && window.coarse.is_empty(), "{window:?}");
    }

    #[test]
    fn a_clock_that_goes_backwards_loses_nothing() {
        let mut window = Window::default();
        count(&mut window, 50);
        count(&mut window, 40);
        assert_eq!(window.sum(51, 60).success, 2);
    }

    fn totals() -> impl Strategy<Value = Totals> {
        let scalars =
            proptest::array::uniform12(prop_oneof![0u64..200, any::<u32>().prop_map(u64::from)]);
        let durations = || proptest::collection::vec(0u64..200_000_000, 0..20);
        let reasons = proptest::collection::vec((0..Reason::ALL.len(), 1u64..1_000), 0..4);
        (scalars, durations(), durations(), reasons).prop_map(|(values, ends, firsts, reasons)| {
            let mut totals = Totals::default();
            for (value, random) in scalars_mut(&mut totals).into_iter().zip(values) {
                *value = random;
            }
            ends.into_iter().for_each(|m| totals.latency.record(Duration::from_micros(m)));
            firsts.into_iter().for_each(|m| totals.first_byte.record(Duration::from_micros(m)));
            reasons.into_iter().for_each(|(at, count)| totals.add_reason(Reason::ALL[at], count));
            totals
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn packing_loses_nothing(totals in totals()) {
            let mut sums = Sums::default();
            sums.unpack(&pack(&totals));
            prop_assert_eq!(sums.totals(), totals);
        }

        /// The plain window of the model is the oracle.
        #[test]
        fn it_answers_as_the_plain_window_does(
            steps in proptest::collection::vec((0u64..12, totals()), 1..60),
            seconds in 1u64..=60,
        ) {
            let (mut window, mut plain) = (Window::default(), stats::Window::default());
            let mut now = 100;
            for (step, totals) in steps {
                now += step;
                window.at(now).merge(&totals);
                plain.at(now).merge(&totals);
                prop_assert_eq!(window.sum(now, seconds), plain.sum(now, seconds));
            }
        }
    }
}
