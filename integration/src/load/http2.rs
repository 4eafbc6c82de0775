//! HTTP/2 with prior knowledge, by hand: GETs that differ only in their stream, and a reader that looks at frame
//! headers and no further. A general client would cost as much as the proxies that are measured.
//!
//! Header blocks: the first request of a connection adds its three literals to the dynamic table, later ones refer to
//! them, as a client that repeats itself does. Of responses only the first field is decoded, which is `:status`.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Done, Exchange, Malformed};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const MAX_FRAME: usize = 16 * 1024;
const MAX_WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;
const SETTINGS_ENABLE_PUSH: u16 = 2;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

pub(super) struct Http2 {
    /// The request's header block the first time, and every other time.
    first: Vec<u8>,
    again: Vec<u8>,
    next_stream: u32,
    /// Streams in flight, oldest first. They end nearly in order, so a search finds them at once.
    streams: VecDeque<Stream>,
    /// The beginning of a frame that did not arrive whole.
    partial: Vec<u8>,
    /// Payload since the connection's window was last opened.
    consumed: u32,
}

struct Stream {
    id: u32,
    started: Instant,
    ok: bool,
}

impl Http2 {
    pub(super) fn new(authority: &str, path: &str) -> Self {
        // Static table: 2 `:method: GET`, 6 `:scheme: http`, 1 `:authority`, 4 `:path: /`, 58 `user-agent`. With
        // incremental indexing (0x40) the last one added becomes 62, the one before 63, and so on.
        let mut first = vec![0x82, 0x86];
        literal(&mut first, 1, authority);
        literal(&mut first, 4, path);
        literal(&mut first, 58, "mesh-load");
        Self {
            first,
            again: vec![0x82, 0x86, 0x80 | 64, 0x80 | 63, 0x80 | 62],
            next_stream: 1,
            streams: VecDeque::new(),
            partial: Vec::new(),
            consumed: 0,
        }
    }

    /// `head` is the frame's nine bytes, `payload` what follows them.
    fn frame(
        &mut self,
        head: &[u8],
        payload: &[u8],
        done: &mut Vec<Done>,
        out: &mut Vec<u8>,
    ) -> Result<u64, Malformed> {
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & MAX_WINDOW;
        match kind {
            kind::HEADERS => {
                // Trailers carry no status, and leave the one of the response as it is.
                if let Some(ok) = status(payload, flags)? {
                    self.stream(id)?.ok = ok;
                }
            }
            kind::DATA => {
                // Frames are at most 16 KiB.
                self.consumed += payload.len() as u32;
                if self.consumed > MAX_WINDOW / 2 {
                    frame(out, kind::WINDOW_UPDATE, 0, 0, &self.consumed.to_be_bytes());
                    self.consumed = 0;
                }
            }
            kind::RST_STREAM => self.stream(id)?.ok = false,
            kind::SETTINGS if flags & ACK == 0 => frame(out, kind::SETTINGS, ACK, 0, &[]),
            kind::PING if flags & ACK == 0 => frame(out, kind::PING, ACK, 0, payload),
            kind::GOAWAY => return Err(Malformed("a GOAWAY under load")),
            _ => {}
        }
        let ends = matches!(kind, kind::HEADERS | kind::DATA) && flags & END_STREAM != 0;
        if ends || kind == kind::RST_STREAM {
            self.finish(id, done)?;
        }
        Ok(if kind == kind::DATA { payload.len() as u64 } else { 0 })
    }

    fn stream(&mut self, id: u32) -> Result<&mut Stream, Malformed> {
        self.streams
            .iter_mut()
            .find(|stream| stream.id == id)
            .ok_or(Malformed("a frame of a stream nobody opened"))
    }

    fn finish(&mut self, id: u32, done: &mut Vec<Done>) -> Result<(), Malformed> {
        let position = self.streams.iter().position(|stream| stream.id == id);
        let stream = position
            .and_then(|position| self.streams.remove(position))
            .ok_or(Malformed("the end of a stream nobody opened"))?;
        done.push(Done { started: stream.started, ok: stream.ok });
        Ok(())
    }
}

impl Exchange for Http2 {
    fn send(&mut self, started: Instant, out: &mut Vec<u8>) {
        let block = if self.next_stream == 1 {
            hello(out);
            &self.first
        } else {
            &self.again
        };
        let id = self.next_stream;
        frame(out, kind::HEADERS, END_STREAM | END_HEADERS, id, block);
        self.next_stream += 2;
        self.streams.push_back(Stream { id, started, ok: false });
    }

    fn receive(
        &mut self,
        input: &[u8],
        done: &mut Vec<Done>,
        out: &mut Vec<u8>,
    ) -> Result<u64, Malformed> {
        let mut partial = std::mem::take(&mut self.partial);
        let mut rest = if partial.is_empty() {
            input
        } else {
            partial.extend_from_slice(input);
            partial.as_slice()
        };
        let mut body_bytes = 0;
        while let Some((head, tail)) = rest.split_at_checked(FRAME_HEAD) {
            let length =
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if length > MAX_FRAME {
                return Err(Malformed("a frame of more than 16 KiB"));
            }
            let Some((payload, tail)) = tail.split_at_checked(length) else {
                break;
            };
            body_bytes += self.frame(head, payload, done, out)?;
            rest = tail;
        }
        self.partial = rest.to_vec();
        Ok(body_bytes)
    }
}

/// The preface, and windows so wide that they are never what the load waits for.
fn hello(out: &mut Vec<u8>) {
    out.extend_from_slice(PREFACE);
    let mut settings = Vec::new();
    for (id, value) in [
        (SETTINGS_HEADER_TABLE_SIZE, 0),
        (SETTINGS_ENABLE_PUSH, 0),
        (SETTINGS_INITIAL_WINDOW_SIZE, MAX_WINDOW),
    ] {
        settings.extend_from_slice(&u16::to_be_bytes(id));
        settings.extend_from_slice(&u32::to_be_bytes(value));
    }
    frame(out, kind::SETTINGS, 0, 0, &settings);
    let more = MAX_WINDOW - DEFAULT_WINDOW;
    frame(out, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
}

/// `payload` is shorter than 16 KiB.
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = payload.len() as u32;
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A field with a name of the static table, to be added to the dynamic one. Values are shorter than 127 bytes.
fn literal(block: &mut Vec<u8>, name: u8, value: &str) {
    block.push(0x40 | name);
    block.push(value.len().min(126) as u8);
    block.extend(value.bytes().take(126));
}

/// Whether the header block begins with `:status: 200`; `None` when it begins with no status at all.
fn status(payload: &[u8], flags: u8) -> Result<Option<bool>, Malformed> {
    let mut skip = usize::from(flags & PADDED != 0);
    skip += if flags & PRIORITY != 0 { 5 } else { 0 };
    let mut block = payload.get(skip..).unwrap_or_default();
    // Changes of the dynamic table's size (0b001.....) come before the fields; ours is zero.
    while let [0x20, rest @ ..] = block {
        block = rest;
    }
    match block {
        [0x88, ..] => Ok(Some(true)),
        // Indexed 9..=14 are the other statuses; 0x08, 0x18, 0x48 are `:status` with a literal value.
        [0x89..=0x8e | 0x08 | 0x18 | 0x48, ..] => Ok(Some(false)),
        [_, ..] => Ok(None),
        [] => Err(Malformed("an empty header block")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(stream: u32, first_field: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::HEADERS, END_HEADERS, stream, &[first_field]);
        frame(&mut bytes, kind::DATA, END_STREAM, stream, b"hello");
        bytes
    }

    fn two_streams() -> (Http2, Vec<Done>, Vec<u8>) {
        let mut http2 = Http2::new("a", "/");
        let mut out = Vec::new();
        http2.send(Instant::now(), &mut out);
        http2.send(Instant::now(), &mut out);
        (http2, Vec::new(), Vec::new())
    }

    #[test]
    fn responses_may_arrive_in_any_pieces_and_order() {
        let input = [response(3, 0x88), response(1, 0x8d)].concat();
        for cut in 1..input.len() {
            let (mut http2, mut done, mut out) = two_streams();
            let mut bytes = http2.receive(&input[..cut], &mut done, &mut out).unwrap();
            bytes += http2.receive(&input[cut..], &mut done, &mut out).unwrap();
            let ok: Vec<_> = done.iter().map(|done| done.ok).collect();
            assert_eq!((bytes, ok), (10, vec![true, false]), "cut at {cut}");
        }
    }

    #[test]
    fn settings_and_pings_are_acknowledged() {
        let (mut http2, mut done, mut out) = two_streams();
        let mut input = Vec::new();
        frame(&mut input, kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        frame(&mut input, kind::PING, 0, 0, b"12345678");
        http2.receive(&input, &mut done, &mut out).unwrap();
        let mut expected = Vec::new();
        frame(&mut expected, kind::SETTINGS, ACK, 0, &[]);
        frame(&mut expected, kind::PING, ACK, 0, b"12345678");
        assert_eq!(out, expected);
    }

    #[test]
    fn trailers_end_a_stream_without_changing_its_status() {
        let (mut http2, mut done, mut out) = two_streams();
        let mut input = Vec::new();
        frame(&mut input, kind::HEADERS, END_HEADERS, 1, &[0x88]);
        let grpc_status = [0x00, 11, b'g'];
        frame(&mut input, kind::HEADERS, END_HEADERS | END_STREAM, 1, &grpc_status);
        http2.receive(&input, &mut done, &mut out).unwrap();
        assert!(done[0].ok);
    }

    #[test]
    fn a_reset_is_a_failure_and_a_stray_stream_an_error() {
        let (mut http2, mut done, mut out) = two_streams();
        let mut input = Vec::new();
        frame(&mut input, kind::RST_STREAM, 0, 1, &[0, 0, 0, 7]);
        http2.receive(&input, &mut done, &mut out).unwrap();
        assert!(!done[0].ok);
        let stray = response(9, 0x88);
        assert!(http2.receive(&stray, &mut done, &mut out).is_err());
    }
}
