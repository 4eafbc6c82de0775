//! The retry budget: how many retries a flow of requests may cost.
//!
//! Without one, retries multiply the load of a service exactly when it can't bear it. Each request
//! deposits a fraction of a retry, each retry withdraws a whole one, a fixed rate is always
//! granted, and all of it is forgotten after the window.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The window moves by tenths of itself.
const SLOTS: usize = 10;

/// A shared budget; clones draw on the same one. Within any window at most
/// `min_per_sec × window + ratio × requests` retries are granted.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    window_length: Duration,
    slot_length: Duration,
    epoch: Instant,
    window: Mutex<Window>,
}

/// Figures of the last `SLOTS` slots; `deposits` and `withdrawals` are their sums.
#[derive(Default)]
struct Window {
    ratio: f64,
    /// Retries granted per window without any request.
    reserve: f64,
    slots: [Slot; SLOTS],
    /// Number of the current slot since the epoch; it is kept at `current % SLOTS`.
    current: u64,
    deposits: u64,
    withdrawals: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    deposits: u32,
    withdrawals: u32,
}

impl Budget {
    /// Retries per request, and a second on top of that, where nobody says anything else.
    pub const USUAL: (f64, u32) = (0.2, 10);

    /// `ratio` retries per request, and `min_per_sec` on top. A window below 10 ms counts as that.
    pub fn new(ratio: f64, min_per_sec: u32, window: Duration) -> Self {
        let window = window.max(Duration::from_millis(SLOTS as u64));
        let budget = Self(Arc::new(Inner {
            window_length: window,
            slot_length: window / SLOTS as u32,
            epoch: Instant::now(),
            window: Mutex::new(Window::default()),
        }));
        budget.set(ratio, min_per_sec);
        budget
    }

    /// Grants by other figures from now on. What was granted counts on.
    pub fn set(&self, ratio: f64, min_per_sec: u32) {
        let mut window = self.0.window.lock();
        window.ratio = if ratio.is_finite() { ratio.max(0.0) } else { 0.0 };
        window.reserve = f64::from(min_per_sec) * self.0.window_length.as_secs_f64();
    }

    /// A request was made.
    pub fn deposit(&self) {
        let now = self.slot_now();
        let mut window = self.0.window.lock();
        window.advance(now);
        let slot = &mut window.slots[now as usize % SLOTS];
        if let Some(deposits) = slot.deposits.checked_add(1) {
            slot.deposits = deposits;
            window.deposits += 1;
        }
    }

    /// Whether a retry may be made; if so, it is counted.
    pub fn withdraw(&self) -> bool {
        let now = self.slot_now();
        let mut window = self.0.window.lock();
        window.advance(now);
        let granted = window.reserve + window.ratio * window.deposits as f64;
        if granted < (window.withdrawals + 1) as f64 {
            return false;
        }
        let slot = &mut window.slots[now as usize % SLOTS];
        let Some(withdrawals) = slot.withdrawals.checked_add(1) else {
            return false;
        };
        slot.withdrawals = withdrawals;
        window.withdrawals += 1;
        true
    }

    fn slot_now(&self) -> u64 {
        (self.0.epoch.elapsed().as_nanos() / self.0.slot_length.as_nanos()) as u64
    }
}

impl Default for Budget {
    /// [`Budget::USUAL`], over 10 s.
    fn default() -> Self {
        let (ratio, min_per_sec) = Self::USUAL;
        Self::new(ratio, min_per_sec, Duration::from_secs(10))
    }
}

impl Window {
    /// Forgets the slots that fell out of the window. Another thread may already have gone further.
    fn advance(&mut self, now: u64) {
        let gone = now.saturating_sub(self.current).min(SLOTS as u64);
        for step in 1..=gone {
            let slot = std::mem::take(&mut self.slots[(self.current + step) as usize % SLOTS]);
            self.deposits -= u64::from(slot.deposits);
            self.withdrawals -= u64::from(slot.withdrawals);
        }
        self.current = self.current.max(now);
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = self.0.window.lock();
        f.debug_struct("Budget")
            .field("ratio", &window.ratio)
            .field("reserve", &window.reserve)
            .field("deposits", &window.deposits)
            .field("withdrawals", &window.withdrawals)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn withdrawals(budget: &Budget) -> usize {
        (0..10_000).take_while(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn grants_a_share_of_the_requests() {
        let budget = Budget::new(0.2, 0, 10 * SECOND);
        assert!(!budget.withdraw());
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!(withdrawals(&budget), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn grants_a_minimum_without_requests() {
        let budget = Budget::new(0.0, 10, 10 * SECOND);
        assert_eq!(withdrawals(&budget), 100);
        advance(5 * SECOND).await;
        assert_eq!(withdrawals(&budget), 0);
        advance(5 * SECOND).await;
        assert_eq!(withdrawals(&budget), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn other_figures_count_what_was_granted() {
        let budget = Budget::new(0.5, 0, 10 * SECOND);
        (0..10).for_each(|_| budget.deposit());
        assert_eq!(withdrawals(&budget), 5);
        budget.set(0.7, 0);
        assert_eq!(withdrawals(&budget), 2);
        budget.set(0.1, 0);
        assert!(!budget.withdraw());
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_requests_after_the_window() {
        let budget = Budget::new(1.0, 0, 10 * SECOND);
        budget.deposit();
        advance(9 * SECOND).await;
        budget.deposit();
        assert!(budget.withdraw());
        advance(SECOND).await;
        assert!(!budget.withdraw(), "the older request is out of the window");
        advance(100 * SECOND).await;
        assert!(!budget.withdraw());
    }

    #[test]
    fn nonsense_ratios_grant_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let _guard = runtime.enter();
        for ratio in [f64::NAN, f64::INFINITY, -1.0] {
            let budget = Budget::new(ratio, 0, Duration::ZERO);
            budget.deposit();
            assert!(!budget.withdraw());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any history is answered as the plain definition of the bound, counted anew, would.
        #[test]
        fn grants_exactly_what_its_definition_says(
            ratio in 0.0..2.0f64,
            min_per_sec in 0u32..3,
            steps in prop::collection::vec((0u64..1500, any::<bool>()), 1..400),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let budget = Budget::new(ratio, min_per_sec, 10 * SECOND);
                let (mut now, mut requests, mut retries) = (0u64, vec![], vec![]);
                for (pause, is_request) in steps {
                    advance(Duration::from_millis(pause)).await;
                    now += pause;
                    if is_request {
                        budget.deposit();
                        requests.push(now / 1000);
                        continue;
                    }
                    let in_window = |seconds: &[u64]| {
                        seconds.iter().filter(|second| **second + 10 > now / 1000).count() as f64
                    };
                    let bound = f64::from(min_per_sec) * 10.0 + ratio * in_window(&requests);
                    let granted = budget.withdraw();
                    prop_assert_eq!(granted, in_window(&retries) + 1.0 <= bound);
                    if granted {
                        retries.push(now / 1000);
                    }
                }
                Ok(())
            })?;
        }
    }
}
