//! Cutting off clients that begin a message head and do not finish it (slowloris).
//!
//! hyper can do this with a timer for every request; one sweep a second over flags that the
//! connections set costs the data path two relaxed stores instead, and leaves idle keep-alive
//! connections alone.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What one HTTP/1 client connection is doing.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Bytes have arrived since a request began and since anything was sent: unless they are of a
    /// body, a head is on its way.
    partial: AtomicBool,
    in_flight: AtomicU32,
    /// Requests begun, so that the sweep can tell progress from standing still.
    begun: AtomicU32,
    cut: Notify,
}

impl Activity {
    pub(crate) fn received(&self) {
        self.partial.store(true, Relaxed);
    }

    /// What is sent answers what has arrived, a body included.
    pub(crate) fn sent(&self) {
        self.partial.store(false, Relaxed);
    }

    pub(crate) fn request_begins(&self) {
        self.partial.store(false, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_ends(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Completes when the connection is to be closed.
    pub(crate) async fn cut(&self) {
        self.cut.notified().await;
    }
}

/// The connections under watch of one worker.
#[derive(Debug)]
pub(crate) struct Sweeper {
    timeout: Duration,
    watched: Mutex<Vec<Watched>>,
}

#[derive(Debug)]
struct Watched {
    activity: Weak<Activity>,
    begun: u32,
    stalled: u32,
}

const TICK: Duration = Duration::from_secs(1);

impl Sweeper {
    pub(crate) fn new(timeout: Duration) -> Arc<Self> {
        Arc::new(Self { timeout, watched: Mutex::default() })
    }

    pub(crate) fn watch(&self) -> Arc<Activity> {
        let activity = Arc::new(Activity::default());
        let watched = Watched { activity: Arc::downgrade(&activity), begun: 0, stalled: 0 };
        self.watched.lock().push(watched);
        activity
    }

    /// Sweeps once a second, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let cut = self.sweep();
            if cut > 0 {
                tracing::info!(
                    cut,
                    "closed connections whose clients did not finish a request head"
                );
            }
        }
    }

    fn sweep(&self) -> usize {
        let allowed = u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX).max(1);
        let mut cut = 0;
        self.watched.lock().retain_mut(|watched| {
            let Some(activity) = watched.activity.upgrade() else { return false };
            let begun = activity.begun.load(Relaxed);
            let waits = activity.partial.load(Relaxed) && activity.in_flight.load(Relaxed) == 0;
            watched.stalled = match waits && begun == watched.begun {
                true => watched.stalled + 1,
                false => 0,
            };
            watched.begun = begun;
            if watched.stalled <= allowed {
                return true;
            }
            activity.cut.notify_one();
            cut += 1;
            false
        });
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_cut(activity: &Activity) -> bool {
        let mut cut = tokio_test_poll(activity.cut());
        cut.take().is_some()
    }

    fn tokio_test_poll<F: Future>(future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn sweep_for(sweeper: &Sweeper, seconds: u32) {
        for _ in 0..seconds {
            sweeper.sweep();
        }
    }

    #[test]
    fn a_head_that_is_never_finished_is_cut() {
        let sweeper = Sweeper::new(Duration::from_secs(3));
        let activity = sweeper.watch();
        activity.received();
        sweep_for(&sweeper, 3);
        assert!(!is_cut(&activity));
        sweep_for(&sweeper, 1);
        assert!(is_cut(&activity));
    }

    #[test]
    fn idle_and_busy_connections_are_left_alone() {
        let sweeper = Sweeper::new(Duration::from_secs(3));
        let (idle, busy) = (sweeper.watch(), sweeper.watch());
        busy.received();
        busy.request_begins();
        busy.received();
        sweep_for(&sweeper, 100);
        assert!(!is_cut(&idle) && !is_cut(&busy));
        busy.request_ends();
        sweep_for(&sweeper, 5);
        assert!(is_cut(&busy), "the pipelined head that never came to an end");
    }

    #[test]
    fn a_body_is_not_a_head() {
        let sweeper = Sweeper::new(Duration::from_secs(3));
        let activity = sweeper.watch();
        activity.received();
        activity.request_begins();
        activity.received();
        // The response's head is there; its body takes as long as it likes.
        activity.request_ends();
        activity.sent();
        sweep_for(&sweeper, 100);
        assert!(!is_cut(&activity));
        activity.received();
        sweep_for(&sweeper, 5);
        assert!(is_cut(&activity), "the next head never came to an end");
    }

    #[test]
    fn progress_starts_the_clock_again() {
        let sweeper = Sweeper::new(Duration::from_secs(3));
        let activity = sweeper.watch();
        for _ in 0..20 {
            activity.received();
            sweep_for(&sweeper, 2);
            activity.request_begins();
            activity.request_ends();
        }
        assert!(!is_cut(&activity));
    }

    #[test]
    fn closed_connections_are_forgotten() {
        let sweeper = Sweeper::new(Duration::from_secs(3));
        drop(sweeper.watch());
        sweeper.sweep();
        assert!(sweeper.watched.lock().is_empty());
    }
}
