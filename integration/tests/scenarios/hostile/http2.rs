//! Floods and bombs of HTTP/2.

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, PING, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, block, flood, flood_unread, frame, get, open, said_goodbye,
};
use super::{Memory, app, assert_served, doors, mesh};

/// Numbers of streams that clients open.
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    const RESETS: usize = 20_000;
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let resets = streams().take(RESETS).map(|stream| {
            let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get());
            [request, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        });
        let stream = open(addr, &[], &[]).await;
        let frames = flood(stream, resets, said_goodbye).await;
        assert!(said_goodbye(&frames), "{:?}", frames.last());
        assert_served(addr).await;
        memory.assert_grew_less_than(16);
    }
    let seen = app.requests();
    assert!(seen < RESETS / 4, "{seen} of the requests reached the application");
}

#[tokio::test]
async fn continuations_without_end_end_the_connection() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    let large = block(&[("x-large", [b'x'; 16_000])]);
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        for payload in [&large[..], b"", b"\0\x01a\x01b"] {
            let begin = frame(HEADERS, END_STREAM, 1, &get());
            let stream = open(addr, &[], &begin).await;
            let more = (0..200_000).map(|_| frame(CONTINUATION, 0, 1, payload));
            let frames = flood(stream, more, said_goodbye).await;
            let length = payload.len();
            assert!(said_goodbye(&frames), "{length} bytes each: {:?}", frames.last());
        }
        assert_served(addr).await;
        memory.assert_grew_less_than(16);
    }
    assert_eq!(app.requests(), doors(&mesh).len(), "none of it came through");
}

#[tokio::test]
async fn compressed_headers_do_not_blow_up() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    // A field of 4 000 bytes put into the table, then mentioned 12 000 times, a byte each.
    let mut bomb = get();
    let mut large = block(&[("x-bomb", [b'b'; 4_000])]);
    large[0] = 0x40;
    bomb.extend(large);
    bomb.extend([0xbe; 12_000]);
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let bombs = streams().take(50).map(|stream| {
            let (first, rest) = bomb.split_at(10_000);
            let begin = frame(HEADERS, END_STREAM, stream, first);
            [begin, frame(CONTINUATION, END_HEADERS, stream, rest)].concat()
        });
        let stream = open(addr, &[], &[]).await;
        // Each is answered, refused, or the last one.
        let answered = |frames: &[super::frames::Frame]| {
            let last = frames.iter().any(|frame| frame.stream == 99);
            last || said_goodbye(frames)
        };
        flood(stream, bombs, answered).await;
        assert_served(addr).await;
        memory.assert_grew_less_than(16);
    }
    assert_eq!(app.requests(), doors(&mesh).len(), "none of it came through");
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    let floods: [fn(u32) -> Vec<u8>; 4] = [
        |_| frame(PING, 0, 0, &[7; 8]),
        |_| frame(SETTINGS, 0, 0, &[]),
        |number| frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &get()),
        // Of streams that are over, each calls for an error.
        |number| frame(DATA, END_STREAM, number * 2 + 1, b"x"),
    ];
    for (sidecar, addr) in doors(&mesh) {
        for (number, make) in floods.into_iter().enumerate() {
            let memory = Memory::of(sidecar);
            let stream = open(addr, &[], &[]).await;
            let flooding = flood_unread(stream, (0..300_000).map(make)).await;
            assert_served(addr).await;
            let grew = memory.growth() >> 20;
            assert!(grew < 24, "flood {number} made {} grow by {grew} MiB", sidecar.name());
            drop(flooding);
        }
    }
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    let begin = || frame(HEADERS, END_HEADERS, 1, &get());
    for (_, addr) in doors(&mesh) {
        for nonsense in [
            // Larger than was allowed.
            frame(DATA, 0, 1, &[0; 20_000]),
            frame(DATA, 0, 0, b"on no stream"),
            frame(DATA, 0, 7, b"on a stream that nobody opened"),
            frame(HEADERS, END_HEADERS | END_STREAM, 2, &get()),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 100]),
            frame(CONTINUATION, END_HEADERS, 1, &get()),
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes()),
            frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes()),
            frame(SETTINGS, 0, 0, b"odd"),
            [INITIAL_WINDOW_SIZE.to_be_bytes().to_vec(), u32::MAX.to_be_bytes().to_vec()].concat(),
            [begin(), frame(HEADERS, 0, 1, &get()), frame(PING, 0, 0, &[0; 8])].concat(),
            b"GET / HTTP/1.1\r\nHost: web\r\n\r\n".repeat(100),
        ] {
            let stream = open(addr, &[], &[]).await;
            let parts = [nonsense.clone(), vec![0xff; 20_000]];
            flood(stream, parts.into_iter(), |_| false).await;
        }
        assert_served(addr).await;
    }
}
