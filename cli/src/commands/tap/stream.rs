//! Following a tap: events in, limits kept, and on stderr how many pods are watched and why it is silent.

use std::future::pending;
use std::time::Duration;

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::{Event, TapStatus, Tapped};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use crate::commands::shared::{self, Lost};
use crate::connect::{Mesh, refusal};
use crate::context::Context;
use crate::error::CliError;
use crate::selector::Selectors;
use crate::units;

/// After this much silence the user is told that it is not a fault of the connection.
const QUIET: Duration = Duration::from_secs(10);

/// When to stop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) count: Option<u64>,
    pub(crate) duration: Option<Duration>,
}

/// What comes out of a tap.
pub(crate) enum Seen {
    Request(Box<Tapped>),
    End(End),
}

/// Why a tap ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A limit was reached.
    Done,
    /// The user stopped it.
    Interrupted,
}

/// A running tap.
pub(crate) struct Tap {
    stream: Streaming<ext::MeshTapEvent>,
    interrupt: Signal,
    until: Option<Instant>,
    left: Option<u64>,
    /// When silence is worth a word; `None` once it has been said.
    quiet_at: Option<Instant>,
    status: TapStatus,
    seen: u64,
    skipped: u64,
}

impl Tap {
    /// Starts it. No matching pod is an error that names what is there.
    pub(crate) async fn start(
        mesh: &Mesh,
        request: ext::MeshTapRequest,
        limits: Limits,
        cx: &mut Context,
    ) -> Result<Self, CliError> {
        let selectors = Selectors(request.selectors.clone());
        let named: Vec<ext::Selector> =
            request.selectors.iter().chain(&request.to).cloned().collect();
        let stream = match mesh.tap(request).await {
            Ok(stream) => stream,
            Err(error) => return Err(shared::propose(mesh, &named, error).await),
        };
        let mut tap = Self {
            stream,
            interrupt: signal(SignalKind::interrupt())?,
            until: limits.duration.map(|duration| Instant::now() + duration),
            left: limits.count,
            quiet_at: Some(Instant::now() + QUIET),
            status: TapStatus::default(),
            seen: 0,
            skipped: 0,
        };
        // The status comes first, always.
        if let Some(Event::Status(status)) = understood(tap.stream.message().await)? {
            if status.pods == 0 {
                let nobody =
                    CliError::missing(format!("no pod of {} has a proxy", selectors.describe()))
                        .hint("meshctl proxy status, which lists every proxy");
                return Err(shared::propose(mesh, &named, nobody).await);
            }
            tap.status_changed(status, cx);
        }
        Ok(tap)
    }

    /// The next request, or the end.
    pub(crate) async fn next(&mut self, cx: &mut Context) -> Result<Seen, CliError> {
        if self.left == Some(0) {
            return Ok(Seen::End(End::Done));
        }
        loop {
            let message = tokio::select! {
                biased;
                _ = self.interrupt.recv() => return Ok(Seen::End(End::Interrupted)),
                () = at(self.until) => return Ok(Seen::End(End::Done)),
                message = self.stream.message() => understood(message)?,
                () = at(self.quiet_at) => {
                    self.quiet_at = None;
                    cx.ui.note(&self.silence());
                    continue;
                }
            };
            match message {
                Some(Event::Request(tapped)) => {
                    return Ok(Seen::Request(Box::new(self.count(tapped))));
                }
                Some(Event::Status(status)) => self.status_changed(status, cx),
                None => {}
            }
        }
    }

    /// What was seen, at the end.
    pub(crate) fn summary(&self) -> String {
        let pods = units::plural(self.status.tapped as usize, "pod");
        let mut text = format!("{} from {pods}", units::plural(self.seen as usize, "request"));
        if self.skipped > 0 {
            text += &format!("; {} more left out, see --max-rps", self.skipped);
        }
        text
    }

    fn count(&mut self, tapped: Tapped) -> Tapped {
        self.seen += 1;
        self.left = self.left.map(|left| left - 1);
        self.skipped += tapped.event.as_ref().map_or(0, |event| event.skipped);
        self.quiet_at = Some(Instant::now() + QUIET);
        tapped
    }

    fn status_changed(&mut self, status: TapStatus, cx: &mut Context) {
        self.status = status;
        cx.ui.note(&describe(&self.status));
    }

    fn silence(&self) -> String {
        format!(
            "{}; 0 requests in {} s with these filters",
            describe(&self.status),
            QUIET.as_secs()
        )
    }
}

/// `tapping 3/5 pods; 2 unreachable: shop/web-1: refused, shop/web-2: timed out`
fn describe(status: &TapStatus) -> String {
    let lost: Vec<Lost> = status.unreachable.iter().cloned().map(Lost::from).collect();
    let mut text = format!("tapping {}/{} pods", status.tapped, status.pods);
    if !lost.is_empty() {
        let each = lost.iter().map(|l| format!("{}/{}: {}", l.namespace, l.pod, l.error));
        text += &format!("; {} unreachable: {}", lost.len(), each.collect::<Vec<_>>().join(", "));
    }
    crate::output::clean(&text).into_owned()
}

/// An event of a kind that a newer control plane knows is `None`.
fn understood(
    message: Result<Option<ext::MeshTapEvent>, Status>,
) -> Result<Option<Event>, CliError> {
    match message {
        Ok(Some(message)) => Ok(message.event),
        Ok(None) => {
            Err(CliError::unreachable("the control plane ended the tap").hint("meshctl check"))
        }
        Err(status) => Err(refusal(&status)),
    }
}

/// Waits until then; without a time, for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
