//! The least TCP proxy, which is what an opaque hop costs before a mesh does anything: bytes copied through a buffer,
//! or moved by splice(2) without entering the process. `floor-tcp LISTEN UPSTREAM copy|splice`

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use rustix::net;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};

/// The default size of a pipe, and a good one for a copy.
const CHUNK: usize = 64 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, how] = args.as_slice() else {
        bail!("usage: floor-tcp LISTEN UPSTREAM copy|splice");
    };
    let upstream: SocketAddr = upstream.parse().context("UPSTREAM is IP:PORT")?;
    let listener = TcpListener::bind(listen).await.context(listen.clone())?;
    let splice = how == "splice";
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(async move {
            // Whoever is at the other end sees the connection close; there is nobody else to tell.
            let _ = forward(socket, upstream, splice).await;
        });
    }
}

async fn forward(mut inner: TcpStream, upstream: SocketAddr, splice: bool) -> io::Result<()> {
    let mut outer = TcpStream::connect(upstream).await?;
    inner.set_nodelay(true)?;
    outer.set_nodelay(true)?;
    if splice {
        tokio::try_join!(move_all(&inner, &outer), move_all(&outer, &inner))?;
    } else {
        copy_bidirectional_with_sizes(&mut inner, &mut outer, CHUNK, CHUNK).await?;
    }
    Ok(())
}

async fn move_all(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        let mut held = from
            .async_io(Interest::READABLE, || Ok(splice(from, None, &into, None, CHUNK, flags)?))
            .await?;
        if held == 0 {
            return Ok(net::shutdown(to, net::Shutdown::Write)?);
        }
        while held > 0 {
            held -= to
                .async_io(Interest::WRITABLE, || Ok(splice(&out, None, to, None, held, flags)?))
                .await?;
        }
    }
}
