//! What a server means that speaks before its client.
//!
//! Not every server that does speaks a protocol in which servers do: one of HTTP/2 says its settings as
//! soon as it is connected, others say at last that they have waited in vain. Taken for a greeting, that
//! would make bytes of whatever the client says next.

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::io::Io;

/// HTTP/2's frame header: length (3), type, flags, stream (4).
const FRAME_HEADER: usize = 9;
const SETTINGS: u8 = 4;
/// Bytes of one setting.
const SETTING: u8 = 6;

/// What the first bytes of a server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Too few to tell.
    Open,
    /// The server speaks first, and the connection is opaque.
    First,
    /// HTTP or TLS, in which the client speaks first.
    Untimely,
}

impl Greeting {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let all = [untimely(bytes, b"HTTP/"), untimely(bytes, &[0x15, 3]), settings(bytes)];
        if all.contains(&Self::Untimely) {
            Self::Untimely
        } else if all.contains(&Self::Open) {
            Self::Open
        } else {
            Self::First
        }
    }
}

/// Hears what a server says unasked; what it said stays in `heard` also when this is dropped. A server
/// that will say nothing any more is [`Greeting::Untimely`], too.
pub(crate) async fn greeting(server: &mut Io, heard: &mut BytesMut) -> Greeting {
    loop {
        heard.reserve(512);
        match server.read_buf(heard).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Greeting::Untimely,
        }
        match Greeting::of(heard) {
            Greeting::Open => {}
            told => return told,
        }
    }
}

/// Whether it begins so: as an answer of HTTP/1, or as an alert of TLS.
fn untimely(bytes: &[u8], beginning: &[u8]) -> Greeting {
    let length = bytes.len().min(beginning.len());
    match (bytes[..length] == beginning[..length], length == beginning.len()) {
        (true, true) => Greeting::Untimely,
        (true, false) => Greeting::Open,
        (false, _) => Greeting::First,
    }
}

/// Few settings, without flags, of the connection itself.
fn settings(bytes: &[u8]) -> Greeting {
    let fits = |(at, byte): (usize, &u8)| match at {
        2 => byte.is_multiple_of(SETTING),
        3 => *byte == SETTINGS,
        _ => *byte == 0,
    };
    match bytes.iter().take(FRAME_HEADER).enumerate().all(fits) {
        true if bytes.len() >= FRAME_HEADER => Greeting::Untimely,
        true => Greeting::Open,
        false => Greeting::First,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_speak_out_of_turn_are_told_from_those_that_speak_first() {
        for (bytes, expected) in [
            (&b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80"[..], Greeting::Untimely),
            (b"\0\0\0\x04\0\0\0\0\0", Greeting::Untimely),
            (b"\0\0\0\x04\0", Greeting::Open),
            (b"\0", Greeting::Open),
            (b"HTTP/1.1 408 Request Timeout\r\n", Greeting::Untimely),
            (b"HTTP", Greeting::Open),
            (b"\x15\x03\x03\0\x02\x01\0", Greeting::Untimely),
            (b"220 mail ready\r\n", Greeting::First),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Greeting::First),
            (b"+OK ready\r\n", Greeting::First),
            (b"\x2c\0\0\0\x0a8.4.2\0", Greeting::First),
            (b"\xff\xfd\x18", Greeting::First),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Greeting::First),
            (b"\0\0\x05\x04\0\0\0\0\0", Greeting::First),
            (b">", Greeting::First),
            (b"HELLO", Greeting::First),
        ] {
            assert_eq!(Greeting::of(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
