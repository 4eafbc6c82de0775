//! From serving to gone: what every role does when it is told to stop.
//!
//! SIGTERM turns readiness off at once; the pod goes on serving for the linger time, so that those
//! who still have it in their lists meet no closed port; then it takes nothing new, finishes
//! what runs, and ends. Next: `server.rs`, which obeys this for HTTP.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long work in flight may take once draining begins; shorter than Kubernetes' 30 s before SIGKILL.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Not ready any more, but still accepting.
    Leaving,
    /// Accepts nothing; finishes what runs.
    Draining,
}

/// A server's view of whether to go on. Clones see the same.
#[derive(Debug, Clone)]
pub(super) struct Lifecycle {
    phase: watch::Receiver<Phase>,
}

/// Ends the [`Lifecycle`] it was made with. Dropping it is the same as draining at once.
#[derive(Debug)]
pub(super) struct Terminator {
    phase: watch::Sender<Phase>,
    linger: Duration,
}

impl Lifecycle {
    pub(super) fn new(linger: Duration) -> (Terminator, Self) {
        let (sender, phase) = watch::channel(Phase::Serving);
        (Terminator { phase: sender, linger }, Self { phase })
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Serving && self.phase.has_changed().is_ok()
    }

    /// Completes as soon as readiness is off.
    pub(super) async fn leaving(&self) {
        // An error means that the terminator is gone, which is an end as well.
        let _ = self.phase.clone().wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Completes when nothing new may be accepted.
    pub(super) async fn draining(&self) {
        let _ = self.phase.clone().wait_for(|phase| *phase == Phase::Draining).await;
    }
}

impl Terminator {
    /// Waits for SIGTERM or SIGINT, then walks through the phases.
    pub(super) async fn on_signal(self) -> io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        self.terminate().await;
        Ok(())
    }

    /// Readiness off, the linger time, then draining.
    pub(super) async fn terminate(self) {
        self.phase.send_replace(Phase::Leaving);
        tokio::time::sleep(self.linger).await;
        self.phase.send_replace(Phase::Draining);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn readiness_goes_first_and_draining_follows_after_the_linger_time() {
        let (terminator, lifecycle) = Lifecycle::new(Duration::from_secs(1));
        assert!(lifecycle.is_ready());
        let begin = Instant::now();
        tokio::spawn(terminator.terminate());
        lifecycle.leaving().await;
        assert!(!lifecycle.is_ready());
        assert_eq!(begin.elapsed(), Duration::ZERO);
        lifecycle.draining().await;
        assert!(begin.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_terminator_ends_the_pod() {
        let (terminator, lifecycle) = Lifecycle::new(Duration::from_secs(1));
        drop(terminator);
        lifecycle.draining().await;
        assert!(!lifecycle.is_ready());
    }
}
