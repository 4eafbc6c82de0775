//! HTTP/2 frame by frame, for what no HTTP/2 library would send.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_integration::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// The bytes of a frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block whose fields are all literal and not indexed.
pub(super) fn block<T: AsRef<[u8]>>(fields: &[(&str, T)]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &[u8]| {
        // Seven bits, then seven bits each of what is left.
        match text.len() {
            short @ ..0x7f => out.push(short as u8),
            long => {
                out.push(0x7f);
                let mut left = long - 0x7f;
                while left > 0x7f {
                    out.push((left & 0x7f) as u8 | 0x80);
                    left >>= 7;
                }
                out.push(left as u8);
            }
        }
        out.extend_from_slice(text);
    };
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        text(&mut out, name.as_bytes());
        text(&mut out, value.as_ref());
    }
    out
}

/// The header block of a plain `GET /`.
pub(super) fn get() -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x86];
    block.extend(self::block(&[(":authority", "web")]));
    block
}

/// Connects, says hello with these settings, and sends.
pub(super) async fn open(addr: SocketAddr, settings: &[(u16, u32)], bytes: &[u8]) -> TcpStream {
    let mut stream = within("connecting", TcpStream::connect(addr)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let settings: Vec<u8> = settings
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &settings)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Sends for as long as it is let, reading all the while; returns what came until the other side
/// closed, or until `enough` of it has.
pub(super) async fn flood(
    stream: TcpStream,
    parts: impl Iterator<Item = Vec<u8>>,
    enough: impl Fn(&[Frame]) -> bool,
) -> Vec<Frame> {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        for part in parts {
            if write.write_all(&part).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut bytes = Vec::new();
        loop {
            let frames = parse(&bytes);
            if enough(&frames) || !matches!(read.read_buf(&mut bytes).await, Ok(1..)) {
                return frames;
            }
        }
    };
    let flooding = async {
        tokio::select! {
            () = sending => unreachable!("it never ends"),
            frames = reading => frames,
        }
    };
    within("the end of a flood", flooding).await
}

/// Sends without ever reading, until nothing is taken any more.
pub(super) async fn flood_unread(
    mut stream: TcpStream,
    parts: impl Iterator<Item = Vec<u8>>,
) -> TcpStream {
    for part in parts {
        match timeout(Duration::from_millis(500), stream.write_all(&part)).await {
            Ok(Ok(())) => {}
            // Closed; or the other side waits for us to read.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    stream
}

/// Whether the other side has said goodbye.
pub(super) fn said_goodbye(frames: &[Frame]) -> bool {
    frames.iter().any(|frame| frame.kind == GOAWAY)
}

fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        frames.push(Frame { kind: head[3], flags: head[4], stream, payload: payload.to_vec() });
        bytes = rest;
    }
    frames
}
