//! Requests one after the other, without hurry: connections that were used and then stay open, as a client with a
//! pool leaves them behind in a proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::http1::Http1;
use super::{Exchange, LoadError, Malformed};

/// A proxy under an instrumenting tool answers its first request slowly.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Opens `count` connections one after the other, each answered once, and returns them open. Blocks.
pub fn hold(
    target: SocketAddr,
    authority: &str,
    count: usize,
) -> Result<Vec<TcpStream>, LoadError> {
    (0..count).map(|_| used(target, authority, 1)).collect()
}

/// One connection after `requests` requests on it, each sent when the one before was answered with 200. Blocks.
pub fn used(target: SocketAddr, authority: &str, requests: usize) -> Result<TcpStream, LoadError> {
    let io = |source| LoadError::Io { target, source };
    let mut socket = TcpStream::connect(target).map_err(io)?;
    socket.set_nodelay(true).map_err(io)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN)).map_err(io)?;
    let mut http1 = Http1::new(authority, "/");
    let (mut out, mut done) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    for _ in 0..requests {
        http1.send(Instant::now(), &mut out);
        socket.write_all(&out).map_err(io)?;
        out.clear();
        while done.is_empty() {
            let read = socket.read(&mut buffer).map_err(io)?;
            if read == 0 {
                return Err(LoadError::Closed { target });
            }
            http1
                .receive(&buffer[..read], &mut done, &mut out)
                .map_err(|Malformed(what)| LoadError::Malformed { target, what })?;
        }
        if done.drain(..).any(|done| !done.ok) {
            return Err(LoadError::Refused { target });
        }
    }
    Ok(socket)
}
