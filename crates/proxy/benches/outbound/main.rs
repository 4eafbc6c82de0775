//! What the outbound stack costs by itself: one connection of a client, one request after the other, through route,
//! deadline, retry, balancer, pool and figures to endpoints in the same thread.
//!
//! `cargo bench -p mesh-proxy --bench outbound` prints time and, where valgrind is installed, instructions per
//! request: those of a run through the stack less those of a run that goes straight to an endpoint. Two runs of
//! different length each let starting cancel out. For callgrind's own view of where they go:
//!
//! ```sh
//! CARGO_PROFILE_BENCH_DEBUG=line-tables-only CARGO_PROFILE_BENCH_STRIP=none \
//!     cargo bench -p mesh-proxy --bench outbound --no-run
//! valgrind --tool=callgrind target/release/deps/outbound-… --run stack 2000
//! ```

mod control_plane;

use std::io::{Error, Result, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_proxy::alone::OutboundAlone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::control_plane::AUTHORITY;

const REQUEST: &[u8] =
    b"GET /items/1 HTTP/1.1\r\nhost: web.test\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";
const ENDPOINTS: usize = 2;
/// Fills caches and pools.
const FEW: u32 = 500;
const COUNTED: u32 = 2_000;
const TIMED: u32 = 50_000;

/// What requests pass.
const WAYS: [&str; 2] = ["straight", "stack"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--run", way, requests] => {
            let requests = requests.parse().map_err(Error::other)?;
            let took = run(way == "stack", requests)?;
            writeln!(std::io::stdout(), "{}", took.as_nanos())
        }
        _ => report(),
    }
}

fn report() -> Result<()> {
    let mut out = std::io::stdout();
    let [straight, stack] = WAYS.map(|way| run(way == "stack", TIMED));
    let time = stack?.saturating_sub(straight?) / TIMED;
    writeln!(out, "outbound, HTTP/1.1, {ENDPOINTS} endpoints: {} ns/request", time.as_nanos())?;
    match WAYS.map(instructions) {
        [Ok(Some(straight)), Ok(Some(stack))] => {
            let each = stack.saturating_sub(straight);
            writeln!(out, "outbound, HTTP/1.1, {ENDPOINTS} endpoints: {each} instructions/request")
        }
        [Err(error), _] | [_, Err(error)] => Err(error),
        _ => writeln!(out, "instructions are not counted: there is no valgrind"),
    }
}

/// Of one request; `None` where there is no valgrind.
fn instructions(way: &str) -> Result<Option<u64>> {
    let few = executed(way, FEW)?;
    let more = executed(way, FEW + COUNTED)?;
    let each = |few, more: u64| more.saturating_sub(few) / u64::from(COUNTED);
    Ok(few.zip(more).map(|(few, more)| each(few, more)))
}

fn executed(way: &str, requests: u32) -> Result<Option<u64>> {
    let mut callgrind = Command::new("valgrind");
    // Told on stderr, when it ends; nothing is written to a file.
    callgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    callgrind.arg(std::env::current_exe()?).args(["--run", way, &requests.to_string()]);
    let output = match callgrind.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // `==1234== Collected : 123456789`
    let total = said.lines().find_map(|line| line.split_once("Collected :"));
    let total = total.and_then(|(_, total)| total.trim().parse().ok());
    total.map(Some).ok_or_else(|| Error::other(format!("valgrind counted nothing: {said}")))
}

/// How long so many requests take, one after the other.
fn run(through_stack: bool, requests: u32) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut endpoints = Vec::new();
        for _ in 0..ENDPOINTS {
            endpoints.push(endpoint().await?);
        }
        let mut client = if through_stack {
            let control = control_plane::start(endpoints).await?;
            let outbound = OutboundAlone::new(control).map_err(Error::other)?;
            let (client, server) = pair().await?;
            tokio::spawn(async move { outbound.serve(server, AUTHORITY).await });
            client
        } else {
            connect(endpoints[0]).await?
        };
        // The first one waits for the control plane.
        exchange(&mut client).await?;
        let begin = Instant::now();
        for _ in 0..requests {
            exchange(&mut client).await?;
        }
        Ok(begin.elapsed())
    })
}

/// Sends a request and reads its whole response.
async fn exchange(client: &mut TcpStream) -> Result<()> {
    client.write_all(REQUEST).await?;
    let mut buffer = [0; 1024];
    let mut got = 0;
    while !buffer[..got].ends_with(b"\r\n\r\nok") {
        match client.read(&mut buffer[got..]).await? {
            0 => return Err(Error::other(String::from_utf8_lossy(&buffer[..got]).into_owned())),
            more => got += more,
        }
    }
    Ok(())
}

/// Answers every request of every connection; heads come whole.
async fn endpoint() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while stream.set_nodelay(true).is_ok()
                    && matches!(stream.read(&mut buffer).await, Ok(1..))
                    && stream.write_all(RESPONSE).await.is_ok()
                {}
            });
        }
    });
    Ok(addr)
}

async fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let client = connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

async fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
