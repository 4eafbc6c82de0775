//! Connections that were used once and then stay open: what a client with a pool leaves behind in a proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::http1::Http1;
use super::{Exchange, LoadError, Malformed};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Opens `count` connections one after the other, each answered once, and returns them open. Blocks.
pub fn hold(
    target: SocketAddr,
    authority: &str,
    count: usize,
) -> Result<Vec<TcpStream>, LoadError> {
    (0..count).map(|_| used_once(target, authority)).collect()
}

fn used_once(target: SocketAddr, authority: &str) -> Result<TcpStream, LoadError> {
    let io = |source| LoadError::Io { target, source };
    let mut socket = TcpStream::connect(target).map_err(io)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN)).map_err(io)?;
    let mut http1 = Http1::new(authority, "/");
    let (mut out, mut done) = (Vec::new(), Vec::new());
    http1.send(Instant::now(), &mut out);
    socket.write_all(&out).map_err(io)?;
    let mut buffer = [0; 4096];
    while done.is_empty() {
        let read = socket.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Err(LoadError::Closed { target });
        }
        http1
            .receive(&buffer[..read], &mut done, &mut out)
            .map_err(|Malformed(what)| LoadError::Malformed { target, what })?;
    }
    Ok(socket)
}
