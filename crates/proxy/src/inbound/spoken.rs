//! What a connection to the application speaks; an application that speaks first is heard.

use std::time::Duration;

use bytes::BytesMut;
use mesh_model::Direction;
use mesh_model::inbound::{PortProtocol, ServerProtocol};
use tokio::time::Instant;
use tracing::Instrument;

use super::Inbound;
use super::port::Port;
use crate::detect::{Detected, Detector, Greeting, PATIENCE, greeting};
use crate::discovery::PortRules;
use crate::io::Io;
use crate::telemetry::Detected as DetectedLabel;

/// How a port's protocol is found out.
enum How {
    /// It is declared to be bytes.
    Declared,
    /// Bytes are carried, too; a client may take so long over its first words.
    Anything(Duration),
    /// The same where all else is refused.
    HttpOnly(Duration),
}

impl Inbound {
    /// What a connection speaks. A connection to the application that is opened to hear it stays in
    /// `app`, for the client's bytes. `None`: the client closed without a byte.
    ///
    /// # Errors
    /// When the client's connection fails.
    pub(super) async fn detect(
        &self,
        io: &mut Io,
        port: &Port,
        rules: &PortRules,
        app: &mut Option<Io>,
    ) -> std::io::Result<Option<Detected>> {
        let limit = self.config.limits.header_timeout;
        let how = match (rules.protocol, &rules.policy.protocol) {
            (PortProtocol::Opaque, _) => How::Declared,
            (PortProtocol::Detect, ServerProtocol::Detect { timeout, .. }) => {
                How::Anything(*timeout)
            }
            // The one stream may be ahead of the other for a moment.
            (PortProtocol::Detect, _) => How::Anything(limit),
            _ => How::HttpOnly(limit),
        };
        let started = Instant::now();
        let mut detector = Detector::default();
        let span = tracing::debug_span!("inbound.detect");
        let (detected, label) = match how {
            How::Declared => return Ok(Some(Detected::Opaque)),
            How::HttpOnly(within) => {
                let detected = detector.run_once_begun(io, within).instrument(span).await?;
                (detected.clone(), detected.as_ref().map(Detected::label))
            }
            How::Anything(within) => {
                let hearing = hear(port, io, &mut detector, within, app).instrument(span);
                match hearing.await? {
                    First::Client(detected) => {
                        let label = detected.as_ref().map(Detected::label);
                        (detected, label)
                    }
                    First::Server => (Some(Detected::Opaque), Some(DetectedLabel::ServerFirst)),
                }
            }
        };
        if let Some(label) = label {
            let detect = &self.recorder.telemetry.detect;
            detect.record(Direction::Inbound, label, started.elapsed());
        }
        match (&detected, how) {
            (Some(Detected::Opaque), How::Anything(_)) => detector.finish_watched(io),
            _ => detector.finish(io),
        }
        Ok(detected)
    }
}

/// Who spoke first.
enum First {
    Client(Option<Detected>),
    /// The application, and so the connection is opaque.
    Server,
}

/// Hears the client, and gives the application a chance to speak while it is silent. The connection
/// opened on this suspicion is kept for `within` at most.
async fn hear(
    port: &Port,
    client: &mut Io,
    detector: &mut Detector,
    within: Duration,
    app: &mut Option<Io>,
) -> std::io::Result<First> {
    if app.is_none() {
        // That the application spoke first before saves waiting for the client; it does not make
        // bytes of what a client says that speaks at once.
        let patience = if port.speaks_first() { Duration::ZERO } else { PATIENCE };
        if let Ok(detected) = tokio::time::timeout(patience, detector.run(client)).await {
            return detected.map(First::Client);
        }
        if !detector.has_read() {
            *app = port.connect().await.ok();
        }
    }
    let Some(server) = app else {
        return detector.run_once_begun(client, within).await.map(First::Client);
    };
    let mut heard = BytesMut::new();
    let greeting = tokio::select! {
        detected = detector.run_once_begun(client, within) => {
            server.unread(heard.freeze());
            return detected.map(First::Client);
        }
        greeting = greeting(server, &mut heard) => greeting,
        () = tokio::time::sleep(within) => Greeting::Untimely,
    };
    if greeting == Greeting::First {
        server.unread(heard.freeze());
        port.spoke_first();
        return Ok(First::Server);
    }
    *app = None;
    detector.run_once_begun(client, within).await.map(First::Client)
}
