//! HTTP/1.1: one GET at a time, responses with a `content-length`.

use std::time::Instant;

use super::{Done, Exchange, Malformed};

const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 64 * 1024;

pub(super) struct Http1 {
    request: Vec<u8>,
    started: Option<Instant>,
    /// The beginning of a head that did not arrive whole.
    head: Vec<u8>,
    /// The response whose body is arriving.
    response: Option<Response>,
}

impl Http1 {
    pub(super) fn new(authority: &str, path: &str) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: mesh-load\r\n\r\n");
        Self { request: request.into_bytes(), started: None, head: Vec::new(), response: None }
    }

    /// Reads a head off `input`; `None`, and `input` kept, when it is not whole yet.
    fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Response>, Malformed> {
        let kept = self.head.len();
        let parsed = if kept == 0 {
            parse_head(input)?
        } else {
            self.head.extend_from_slice(input);
            parse_head(&self.head)?
        };
        let Some((length, response)) = parsed else {
            if kept == 0 {
                self.head.extend_from_slice(input);
            }
            if self.head.len() > MAX_HEAD {
                return Err(Malformed("a head of more than 64 KiB"));
            }
            return Ok(None);
        };
        *input = &input[length - kept..];
        self.head.clear();
        Ok(Some(response))
    }
}

impl Exchange for Http1 {
    fn send(&mut self, started: Instant, out: &mut Vec<u8>) {
        self.started = Some(started);
        out.extend_from_slice(&self.request);
    }

    fn receive(
        &mut self,
        mut input: &[u8],
        done: &mut Vec<Done>,
        _out: &mut Vec<u8>,
    ) -> Result<u64, Malformed> {
        let mut body_bytes = 0;
        while !input.is_empty() {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => match self.parse(&mut input)? {
                    Some(response) => response,
                    None => break,
                },
            };
            let here = response.left.min(input.len() as u64);
            input = &input[here as usize..];
            body_bytes += here;
            response.left -= here;
            if response.left > 0 {
                self.response = Some(response);
                break;
            }
            let started = self.started.take().ok_or(Malformed("a response nobody asked for"))?;
            done.push(Done { started, ok: response.ok });
        }
        Ok(body_bytes)
    }
}

/// A response whose head was read.
#[derive(Clone, Copy)]
struct Response {
    ok: bool,
    /// Bytes of the body that did not arrive yet.
    left: u64,
}

/// The response and the length of its head; `None` when the head is not whole yet.
fn parse_head(input: &[u8]) -> Result<Option<(usize, Response)>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) =
        response.parse(input).map_err(|_| Malformed("not an HTTP/1 head"))?
    else {
        return Ok(None);
    };
    let left = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or(Malformed("a response without a content-length"))?;
    let ok = response.code == Some(200);
    Ok(Some((length, Response { ok, left })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    fn waiting() -> (Http1, Vec<Done>, Vec<u8>) {
        let mut http1 = Http1::new("a", "/");
        let mut out = Vec::new();
        http1.send(Instant::now(), &mut out);
        (http1, Vec::new(), out)
    }

    #[test]
    fn a_response_may_arrive_in_any_pieces() {
        for cut in 1..RESPONSE.len() {
            let (mut http1, mut done, mut out) = waiting();
            let (first, second) = RESPONSE.split_at(cut);
            let mut bytes = http1.receive(first, &mut done, &mut out).unwrap();
            assert!(done.is_empty(), "cut at {cut}");
            bytes += http1.receive(second, &mut done, &mut out).unwrap();
            assert_eq!((bytes, done.len(), done[0].ok), (5, 1, true), "cut at {cut}");
        }
    }

    #[test]
    fn other_statuses_are_failures_and_other_bytes_are_errors() {
        let (mut http1, mut done, mut out) = waiting();
        let input = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        http1.receive(input, &mut done, &mut out).unwrap();
        assert!(!done[0].ok);

        let (mut http1, mut done, mut out) = waiting();
        assert!(http1.receive(b"SSH-2.0\r\n", &mut done, &mut out).is_err());
        let (mut http1, mut done, mut out) = waiting();
        let twice = [RESPONSE, RESPONSE].concat();
        assert!(http1.receive(&twice, &mut done, &mut out).is_err());
    }
}
