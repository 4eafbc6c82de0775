//! The least TCP proxy, which is what an opaque hop costs before a mesh does anything: bytes copied through a buffer,
//! or moved by splice(2) without entering the process. Two that copy, with mTLS in between, are two hops:
//! `floor-tcp LISTEN UPSTREAM copy|splice [tls-upstream|tls-accepted FOLDER]`, with what [`Sides::new`] reads.

use std::io;

use anyhow::{Context, bail};
use mesh_integration::floor::Sides;
use rustix::net;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::either::Either;

/// The default size of a pipe, and a good one for a copy.
const CHUNK: usize = 64 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, how, secured @ ..] = args.as_slice() else {
        bail!("usage: floor-tcp LISTEN UPSTREAM copy|splice [tls-upstream|tls-accepted FOLDER]");
    };
    let sides = Sides::new(upstream, secured)?;
    let listener = TcpListener::bind(listen).await.context(listen.clone())?;
    let splice = how == "splice";
    loop {
        let (socket, _) = listener.accept().await?;
        let sides = sides.clone();
        tokio::spawn(async move {
            // Whoever is at the other end sees the connection close; there is nobody else to tell.
            let _ = forward(socket, &sides, splice).await;
        });
    }
}

async fn forward(socket: TcpStream, sides: &Sides, splice: bool) -> io::Result<()> {
    let (mut accepted, mut upstream) = (sides.accepted(socket).await?, sides.connect().await?);
    if !splice {
        copy_bidirectional_with_sizes(&mut accepted, &mut upstream, CHUNK, CHUNK).await?;
        return Ok(());
    }
    let (Either::Left(accepted), Either::Left(upstream)) = (accepted, upstream) else {
        return Err(io::Error::other("only what enters the process can be encrypted: copy"));
    };
    tokio::try_join!(move_all(&accepted, &upstream), move_all(&upstream, &accepted)).map(drop)
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
