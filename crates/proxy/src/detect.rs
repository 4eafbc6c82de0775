//! What a connection speaks, from its first bytes, without ever stalling it.
//!
//! A client that waits for the server to speak (MySQL, SMTP) would wait for ever if the proxy
//! waited for the client. So a client that is silent for a moment gets its server connected; if the
//! server speaks first, the connection is opaque, and the destination is remembered as such. A
//! client that merely takes its time is still detected when it speaks. What servers say first is in
//! [`greeting`], what counts as a request in [`request_line`].

mod greeting;
mod request_line;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

pub(crate) use self::greeting::{Greeting, greeting};
pub(crate) use self::request_line::{RequestLine, Verdict};
use crate::http::server::Version;
use crate::io::Io;

/// How long a client may be silent before the server is given a chance to speak first.
pub(crate) const PATIENCE: Duration = Duration::from_millis(30);
/// A post-quantum ClientHello or a long request line fits.
const PEEK_LIMIT: usize = 16 * 1024;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer methods exist nowhere; without a bound any text would look like one.
const MAX_METHOD: usize = 24;

/// What the first bytes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detected {
    Http(Version),
    /// A TLS handshake, with its server name if it has one.
    Tls {
        sni: Option<String>,
    },
    Opaque,
}

impl Detected {
    /// For the metrics of detection.
    pub(crate) fn label(&self) -> crate::telemetry::Detected {
        use crate::telemetry::Detected as Label;
        match self {
            Self::Http(Version::Http1) => Label::Http1,
            Self::Http(Version::Http2) => Label::Http2,
            Self::Tls { .. } => Label::Tls,
            Self::Opaque => Label::Opaque,
        }
    }
}

/// What is known so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sniffed {
    Yes(Detected),
    NeedMore,
}

/// Reads a connection's first bytes until they tell. May be dropped and run again at any time:
/// what was read is kept here until [`Detector::finish`].
#[derive(Debug, Default)]
pub(crate) struct Detector {
    read: BytesMut,
}

impl Detector {
    /// Reads until the protocol is known. `None`: the client closed without a byte.
    pub(crate) async fn run(&mut self, io: &mut Io) -> io::Result<Option<Detected>> {
        loop {
            if self.has_read() {
                match sniff(&self.read) {
                    Sniffed::Yes(detected) => return Ok(Some(detected)),
                    Sniffed::NeedMore if self.read.len() >= PEEK_LIMIT => {
                        return Ok(Some(self.at_best()));
                    }
                    Sniffed::NeedMore => {}
                }
            }
            if !self.read_more(io).await? {
                return Ok(self.has_read().then(|| self.at_end()));
            }
        }
    }

    /// The same within a time. A client that stops in the middle of something is opaque, unless that
    /// looks like a request.
    pub(crate) async fn run_within(
        &mut self,
        io: &mut Io,
        timeout: Duration,
    ) -> io::Result<Option<Detected>> {
        let detected = tokio::time::timeout(timeout, self.run(io)).await;
        detected.unwrap_or_else(|_| Ok(Some(self.at_best())))
    }

    /// The same, but the time begins with the first byte: a client may be silent for as long as it
    /// likes.
    pub(crate) async fn run_once_begun(
        &mut self,
        io: &mut Io,
        timeout: Duration,
    ) -> io::Result<Option<Detected>> {
        if !self.has_read() && !self.read_more(io).await? {
            return Ok(None);
        }
        self.run_within(io, timeout).await
    }

    /// Whether there was more.
    async fn read_more(&mut self, io: &mut Io) -> io::Result<bool> {
        self.read.reserve(1024);
        Ok(io.read_buf(&mut self.read).await? > 0)
    }

    pub(crate) fn has_read(&self) -> bool {
        !self.read.is_empty()
    }

    /// What it is most likely when no more comes, or too much has. A request that is too long or too
    /// slow is for the HTTP server to refuse.
    fn at_best(&self) -> Detected {
        match RequestLine::of(&self.read).has_target() {
            true => Detected::Http(Version::Http1),
            false => Detected::Opaque,
        }
    }

    /// What it is when the client says no more. Some servers serve a line that has no end, too.
    fn at_end(&self) -> Detected {
        match RequestLine::of(&self.read).feed(b"\n") {
            Verdict::Http => Detected::Http(Version::Http1),
            Verdict::Open | Verdict::Not => Detected::Opaque,
        }
    }

    /// Puts what was read back into the connection.
    pub(crate) fn finish(self, io: &mut Io) {
        io.unread(self.read.freeze());
    }

    /// The same for a connection that is carried as bytes: should they turn out to be a request after
    /// all, reading fails.
    pub(crate) fn finish_watched(self, io: &mut Io) {
        io.watch(RequestLine::of(&self.read));
        self.finish(io);
    }
}

/// Looks at the first bytes of a connection.
fn sniff(bytes: &[u8]) -> Sniffed {
    let preface = bytes.len().min(H2_PREFACE.len());
    if bytes[..preface] == H2_PREFACE[..preface] {
        return match preface == H2_PREFACE.len() {
            true => Sniffed::Yes(Detected::Http(Version::Http2)),
            false => Sniffed::NeedMore,
        };
    }
    if bytes[0] == mesh_tls::HANDSHAKE {
        return match mesh_tls::client_hello(bytes) {
            mesh_tls::ClientHello::Complete { sni } => Sniffed::Yes(Detected::Tls { sni }),
            mesh_tls::ClientHello::Incomplete => Sniffed::NeedMore,
            mesh_tls::ClientHello::NotTls => Sniffed::Yes(Detected::Opaque),
        };
    }
    sniff_http1(bytes)
}

/// Tells requests, whole or begun, from all else.
fn sniff_http1(bytes: &[u8]) -> Sniffed {
    match RequestLine::of(bytes).verdict() {
        Verdict::Http => Sniffed::Yes(Detected::Http(Version::Http1)),
        Verdict::Open if is_worth_waiting(bytes) => Sniffed::NeedMore,
        Verdict::Open | Verdict::Not => Sniffed::Yes(Detected::Opaque),
    }
}

/// Whether a line so far looks like a usual request. The servers of other protocols must not be kept
/// waiting for the rest of what merely could become one.
fn is_worth_waiting(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start();
    let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    method.len() <= MAX_METHOD
        && method.iter().all(is_method_byte)
        && line[method.len()..].iter().all(|byte| *byte >= b' ')
}

fn is_method_byte(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HTTP1: Sniffed = Sniffed::Yes(Detected::Http(Version::Http1));
    const HTTP2: Sniffed = Sniffed::Yes(Detected::Http(Version::Http2));
    const OPAQUE: Sniffed = Sniffed::Yes(Detected::Opaque);

    #[test]
    fn protocols_are_told_apart() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], HTTP1),
            (b"GET http://a/b HTTP/1.0\r\nhost: a\r\n", HTTP1),
            (b"M-SEARCH * HTTP/1.1\r\n", HTTP1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", HTTP2),
            (b"PRI * HTTP/2", Sniffed::NeedMore),
            (b"GE", Sniffed::NeedMore),
            (b"GET /very/long", Sniffed::NeedMore),
            (b"SET key value\r\n", OPAQUE),
            (b"EHLO host\r\n", OPAQUE),
            (b"\x00\x01\x02", OPAQUE),
            (b"get", OPAQUE),
            (b"get / HTTP/1.1\r\n", HTTP1),
            (b"\r\n", Sniffed::NeedMore),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", HTTP1),
            (b" GET / HTTP/1.1\r\n", HTTP1),
            (b"GET / HTTP/9.9\r\n", HTTP1),
            (b"GET /a\0", OPAQUE),
            (b"\x16\x03\x01", Sniffed::NeedMore),
            (b"\x16not tls at all", OPAQUE),
        ] {
            assert_eq!(sniff(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_without_end_is_a_request_as_well() {
        for (bytes, expected) in [
            ("GET / HTTP/1.1", Detected::Http(Version::Http1)),
            ("GET /", Detected::Http(Version::Http1)),
            ("GET ", Detected::Opaque),
            ("ping", Detected::Opaque),
            ("\r\n", Detected::Opaque),
        ] {
            let detector = Detector { read: bytes.as_bytes().into() };
            assert_eq!(detector.at_end(), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            sniff(&bytes);
        }

        #[test]
        fn a_request_line_is_known_however_it_is_cut(cut in 1usize..16) {
            let line = b"GET / HTTP/1.1\r\n";
            let partial = sniff(&line[..cut]);
            // Some servers take the `\r` for the end.
            let ended = line[..cut].contains(&b'\r');
            prop_assert_eq!(partial, if ended { HTTP1 } else { Sniffed::NeedMore });
        }
    }
}
