//! Requests that two readers could take for different ones (request smuggling). Each is refused, or
//! reaches the application in a form with one meaning only.

use std::sync::Arc;

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::mesh::{GATEWAY, MESH_NAMESPACE, id_in, id_of};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, block, flood, frame, open};
use super::{doors, mesh};

/// What becomes of a request.
enum Fate {
    /// An error, and the application sees nothing of it.
    Refused,
    /// The application sees exactly this: the request line and the headers in order of their names,
    /// without `host`; and the bytes after them.
    Seen(&'static str, &'static str),
}

use Fate::{Refused, Seen};

const CHUNKED: &str = "POST / HTTP/1.1\ntransfer-encoding: chunked\n";

/// Each with a word on what is wrong with it.
fn forms() -> Vec<(&'static str, &'static str, Fate)> {
    let mut forms = Vec::new();
    let mut form = |what, request, fate| forms.push((what, request, fate));
    form(
        "both lengths, the chunks shorter",
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\nX: ",
        Seen(CHUNKED, "0\r\n\r\n"),
    );
    form(
        "both lengths, the number shorter",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
         1F\r\nGET /smuggled HTTP/1.1\r\nX: \r\n\r\n\r\n0\r\n\r\n",
        Seen(CHUNKED, "1F\r\nGET /smuggled HTTP/1.1\r\nX: \r\n\r\n\r\n0\r\n\r\n"),
    );
    for (what, header) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 30"),
        ("a list of lengths", "Content-Length: 4, 30"),
        ("a signed length", "Content-Length: +4"),
        ("a negative length", "Content-Length: -4"),
        ("a hexadecimal length", "Content-Length: 0x4"),
        ("a length with a space in it", "Content-Length: 4 0"),
        ("an empty length", "Content-Length: "),
        ("a length beyond any", "Content-Length: 99999999999999999999"),
        ("an unknown coding", "Transfer-Encoding: xchunked"),
        ("chunks that are coded again", "Transfer-Encoding: chunked, identity"),
        ("no coding", "Transfer-Encoding: identity"),
        ("chunked in quotes", "Transfer-Encoding: \"chunked\""),
        ("two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        ("a control character", "Transfer-Encoding: \x0bchunked"),
        ("a space before the colon", "Transfer-Encoding : chunked"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked"),
        ("a folded header", "X-A: b\r\n Transfer-Encoding: chunked"),
        ("a folded coding", "Transfer-Encoding:\r\n chunked"),
        ("a bare CR", "X-A: b\rTransfer-Encoding: chunked"),
        ("a NUL", "X-A: b\0Transfer-Encoding: chunked"),
        ("a header without a colon", "Transfer-Encoding chunked"),
        ("a header without a name", ": chunked"),
        ("a name with odd characters", "Transfer\u{2d}Encoding\u{7f}: chunked"),
    ] {
        let body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
        let request = format!("POST / HTTP/1.1\r\nHost: web\r\n{header}\r\n\r\n{body}");
        form(what, request.leak(), Refused);
    }
    form(
        "the same length twice",
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
        Seen("POST / HTTP/1.1\ncontent-length: 4\n", "body"),
    );
    form(
        "a coding in capitals",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: CHUNKED\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        Seen(CHUNKED, "4\r\nbody\r\n0\r\n\r\n"),
    );
    form(
        "bare LF",
        "POST / HTTP/1.1\nHost: web\nX-A: b\nContent-Length: 4\n\nbody",
        Seen("POST / HTTP/1.1\ncontent-length: 4\nx-a: b\n", "body"),
    );
    form(
        "chunks in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        Refused,
    );
    form(
        "a body where none is usual",
        "GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 24\r\n\r\nGET /smuggled HTTP/1.1\r\n",
        Seen("GET / HTTP/1.1\ncontent-length: 24\n", "GET /smuggled HTTP/1.1\r\n"),
    );
    form(
        "an extension of a chunk",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n\
         4;a=\"b\r\nbody\r\n0;x\r\n\r\n",
        Seen(CHUNKED, "4\r\nbody\r\n0\r\n\r\n"),
    );
    form("a target with spaces", "GET /a b HTTP/1.1\r\nHost: web\r\n\r\n", Refused);
    form("two hosts", "GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n", Refused);
    form("a host that is none", "GET / HTTP/1.1\r\nHost: web/../x\r\n\r\n", Refused);
    form(
        "a field that the connection header names",
        "GET / HTTP/1.1\r\nHost: web\r\nX-A: b\r\nConnection: close, X-A, Host, Content-Length\r\n\
         Content-Length: 4\r\n\r\nbody",
        Seen("GET / HTTP/1.1\ncontent-length: 4\n", "body"),
    );
    forms
}

/// Bodies in chunks that make no sense: the application may see the beginning, but never the end.
const BROKEN_CHUNKS: [&str; 9] = [
    "0x4\r\nbody\r\n0\r\n\r\n",
    "-4\r\nbody\r\n0\r\n\r\n",
    "+4\r\nbody\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nbody\r\n0\r\n\r\n",
    "4\r\nbody0\r\n\r\n",
    "4\r\nbodybody\r\n0\r\n\r\n",
    "4\r\nbody\r\nzz\r\n\r\n",
    "4;a\nb\r\nbody\r\n0\r\n\r\n",
    "\r\n4\r\nbody\r\n0\r\n\r\n",
];

/// Everything that each connection to the application has brought.
type Recorded = Arc<Mutex<Vec<Vec<u8>>>>;

/// Notes every byte, and says `ok` to whatever a strict reader takes for a request.
async fn recorder() -> (TcpApp, Recorded) {
    let seen = Recorded::default();
    let noted = Arc::clone(&seen);
    let app = TcpApp::start(move |mut stream| {
        let noted = Arc::clone(&noted);
        async move {
            let mut unread = Vec::new();
            let number = {
                let mut noted = noted.lock();
                noted.push(Vec::new());
                noted.len() - 1
            };
            loop {
                let before = unread.len();
                if !matches!(stream.read_buf(&mut unread).await, Ok(1..)) {
                    return;
                }
                noted.lock()[number].extend_from_slice(&unread[before..]);
                while let Some(length) = request_length(&unread) {
                    unread.drain(..length);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (app, seen)
}

/// The length of the request that these bytes begin with, once it is whole.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    if text.contains("transfer-encoding: chunked\r\n") {
        let end = bytes[head..].windows(5).position(|end| end == b"0\r\n\r\n")?;
        return Some(head + end + 5);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let whole = head + length.map_or(0, |length| length.parse::<usize>().unwrap());
    (bytes.len() >= whole).then_some(whole)
}

/// A request as [`Seen`] has it.
fn normalized(bytes: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    lines[1..].sort_unstable();
    let hosts = lines.iter().filter(|line| line.starts_with("host: ")).count();
    assert_eq!(hosts, 1, "exactly one host in {text:?}");
    let clients = [id_of("client"), id_in(MESH_NAMESPACE, GATEWAY)];
    let clients = clients.map(|id| format!("l5d-client-id: {id}"));
    lines.retain(|line| {
        let told = ["host: ", "x-forwarded-for: 127.", "x-forwarded-proto: http"];
        let host = line.starts_with("x-forwarded-host: web");
        let told = host || told.iter().any(|told| line.starts_with(told));
        !told && !clients.iter().any(|client| client == line)
    });
    (lines.join("\n") + "\n", rest.to_owned())
}

const AFTER: &str = "GET /after HTTP/1.1\r\nHost: web\r\n\r\n";

#[tokio::test]
async fn requests_have_one_meaning_or_none() {
    let (app, seen) = recorder().await;
    let mesh = mesh(app.addr(), &[]).await;
    let mut wrong = Vec::new();
    for (sidecar, addr) in doors(&mesh) {
        for (what, request, fate) in forms() {
            seen.lock().iter_mut().for_each(Vec::clear);
            let mut connection = Connection::open(addr).await;
            connection.send(request).await;
            let status = connection.try_response().await.map(|response| response.status);
            // Had anything been left over, it would come before or after this.
            let mut after = Connection::open(addr).await;
            after.send(AFTER).await;
            assert_eq!(after.response().await.text(), "ok", "after {what}");
            let all = seen.lock().concat();
            let at = all.windows(10).position(|part| part == b"GET /after").unwrap();
            let (before, last) = all.split_at(at);
            let (line, rest) = normalized(last);
            assert_eq!((&*line, &*rest), ("GET /after HTTP/1.1\n", ""), "after {what}");
            let through = sidecar.name();
            match (fate, before) {
                (Refused, b"") => match status {
                    Ok(400..500) => {}
                    other => wrong.push(format!("{through}: {what}: answered {other:?}")),
                },
                (Seen(head, body), before) if !before.is_empty() => {
                    let got = normalized(before);
                    if (&*got.0, &*got.1) != (head, body) {
                        wrong.push(format!("{through}: {what}: {got:?}"));
                    }
                }
                (_, before) => {
                    let got = String::from_utf8_lossy(before);
                    wrong.push(format!("{through}: {what}: the application saw {got:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn chunks_that_make_no_sense_have_no_end() {
    let (app, seen) = recorder().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        for body in BROKEN_CHUNKS {
            seen.lock().iter_mut().for_each(Vec::clear);
            let mut connection = Connection::open(addr).await;
            let head = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
            connection.send(format!("{head}{body}")).await;
            if let Ok(response) = connection.try_response().await {
                assert!((400..600).contains(&response.status), "{body:?}: {response:?}");
            }
            let mut after = Connection::open(addr).await;
            after.send(AFTER).await;
            assert_eq!(after.response().await.text(), "ok", "after {body:?}");
            let all = String::from_utf8_lossy(&seen.lock().concat()).into_owned();
            let through = sidecar.name();
            assert!(!all.contains("0\r\n\r\n"), "{through}: {body:?}: an end in {all:?}");
        }
    }
}

#[tokio::test]
async fn what_http2_can_say_and_http1_cannot_is_refused() {
    let (app, seen) = recorder().await;
    let mesh = mesh(app.addr(), &[]).await;
    let usual: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "web")];
    // As if it came from another proxy, which had it as HTTP/1.
    let downgraded: (&str, &str) = ("l5d-orig-proto", "HTTP/1.1");
    let with = |more: &[(&'static str, &'static str)]| [&usual[..], &[downgraded], more].concat();
    let without = |name: &str, value: &'static str| {
        let mut fields = usual.map(|(n, v)| if n == name { (n, value) } else { (n, v) }).to_vec();
        fields.push(downgraded);
        fields
    };
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
    for (_, addr) in doors(&mesh) {
        for fields in [
            with(&[("transfer-encoding", "chunked")]),
            with(&[("connection", "keep-alive")]),
            with(&[("content-length", "4"), ("content-length", "40")]),
            with(&[("content-length", "4")]),
            with(&[("x-a", "b\r\ntransfer-encoding: chunked")]),
            with(&[("x-a", "b\nc: d")]),
            with(&[("x-a: b\r\nc", "d")]),
            with(&[("X-Upper", "d")]),
            with(&[(":path", "/other")]),
            without(":path", "/ HTTP/1.1\r\nx: y"),
            without(":path", "/a b"),
            without(":path", ""),
            without(":method", "GET / HTTP/1.1\r\nx:"),
            without(":authority", "web\r\nx: y"),
        ] {
            let begin = frame(HEADERS, END_HEADERS, 1, &block(&fields));
            let bytes = [begin, frame(DATA, END_STREAM, 1, smuggled.as_bytes())].concat();
            let stream = open(addr, &[], &[]).await;
            let ended = |frames: &[super::frames::Frame]| {
                frames.iter().any(|frame| {
                    // Reset, or answered by the proxy.
                    frame.kind == 3
                        || frame.kind == 7
                        || frame.flags & END_STREAM != 0 && frame.stream == 1
                })
            };
            flood(stream, [bytes].into_iter(), ended).await;
        }
        let mut after = Connection::open(addr).await;
        after.send(AFTER).await;
        assert_eq!(after.response().await.text(), "ok");
    }
    for connection in seen.lock().iter() {
        let text = String::from_utf8_lossy(connection);
        // A head may have been passed on before its body turned out not to be as long as it said.
        assert!(!text.contains("smuggled") && !text.contains("chunked"), "{text}");
        assert!(!text.to_lowercase().contains("\r\nc: d"), "{text}");
    }
}
