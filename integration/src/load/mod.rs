//! A load generator that costs little enough not to be what is measured: one thread, one epoll, no allocation per
//! request. [`run`] sends as fast as answers come back, or at a fixed rate whatever the answers do (an open loop: the
//! time of a request counts from when it was due, so a stall is seen by every request it delayed).
//!
//! [`http1`] and [`http2`] say how one connection writes requests and recognises ends of responses; [`idle`] opens
//! connections and leaves them alone.

pub mod backend;
mod http1;
mod http2;
pub mod idle;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use self::http1::Http1;
use self::http2::Http2;

/// What to send, where to, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: SocketAddr,
    /// `Host` or `:authority`.
    pub authority: String,
    pub path: String,
    pub protocol: Protocol,
    pub connections: usize,
    pub pace: Pace,
    /// Load before anything is counted.
    pub warm_up: Duration,
    /// The part that is counted.
    pub window: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2 { streams: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The next request leaves when an answer arrives.
    Saturate,
    /// Requests per second, whether or not answers arrive.
    Open { rate: u32 },
}

/// What happened inside the window.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    /// Responses other than 200 and streams that were reset.
    pub failed: u64,
    /// Payload of the responses.
    pub body_bytes: u64,
    pub elapsed: Duration,
    /// Nanoseconds per request.
    pub latency: Histogram<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{target}: {source}")]
    Io { target: SocketAddr, source: io::Error },
    #[error("{target} closed a connection that was in use")]
    Closed { target: SocketAddr },
    #[error("{target} sent what is not a response: {what}")]
    Malformed { target: SocketAddr, what: &'static str },
    #[error("{target} did not answer anything for {after:?}")]
    Stalled { target: SocketAddr, after: Duration },
    #[error("{target} did not answer with 200")]
    Refused { target: SocketAddr },
    #[error("{target} is {behind} requests behind the rate asked for; ask for a lower one")]
    Overrun { target: SocketAddr, behind: usize },
}

/// Bytes that are no response of the protocol in use.
#[derive(Debug)]
struct Malformed(&'static str);

/// A finished response.
#[derive(Debug)]
struct Done {
    started: Instant,
    ok: bool,
}

/// One connection's side of a protocol: a state machine over bytes, without I/O.
trait Exchange {
    /// Appends one more request to `out`. `started` comes back in its [`Done`].
    fn send(&mut self, started: Instant, out: &mut Vec<u8>);

    /// Takes what arrived, appends finished responses to `done` and protocol chatter (acknowledgements, windows) to
    /// `out`. Returns the bytes of response bodies.
    fn receive(
        &mut self,
        input: &[u8],
        done: &mut Vec<Done>,
        out: &mut Vec<u8>,
    ) -> Result<u64, Malformed>;
}

/// Nothing arriving for this long means that the program under load is stuck.
const STALL: Duration = Duration::from_secs(5);
/// Longer ones count as this long.
const LONGEST_NANOS: u64 = 60_000_000_000;
const MAX_BEHIND: usize = 10_000;
const READ_BUFFER: usize = 256 * 1024;
/// The epoll token of the open loop's timer.
const TIMER: u64 = u64::MAX;

/// Runs the plan on the calling thread. `at_window` is called when counting begins and again when it ends.
pub fn run(plan: &Plan, at_window: &mut dyn FnMut()) -> Result<Outcome, LoadError> {
    let (authority, path) = (&plan.authority, &plan.path);
    match plan.protocol {
        Protocol::Http1 => {
            Run::new(plan, 1, || Http1::new(authority, path))?.drive(plan, at_window)
        }
        Protocol::Http2 { streams } => {
            Run::new(plan, streams, || Http2::new(authority, path))?.drive(plan, at_window)
        }
    }
}

struct Run<E> {
    target: SocketAddr,
    epoll: rustix::fd::OwnedFd,
    timer: Option<rustix::fd::OwnedFd>,
    connections: Vec<Connection<E>>,
    /// Connections by index, once for each request they could still carry.
    free: Vec<usize>,
    /// Open loop: due, but no connection was free.
    waiting: VecDeque<Instant>,
    open: bool,
    tally: Tally,
    done: Vec<Done>,
}

struct Connection<E> {
    socket: TcpStream,
    exchange: E,
    /// Not written yet; nearly always empty.
    out: Vec<u8>,
    wants_write: bool,
}

/// What was counted; `None` outside the window.
struct Tally {
    window: Option<Counted>,
}

struct Counted {
    since: Instant,
    requests: u64,
    failed: u64,
    body_bytes: u64,
    latency: Histogram<u64>,
}

impl<E: Exchange> Run<E> {
    fn new(plan: &Plan, streams: usize, exchange: impl Fn() -> E) -> Result<Self, LoadError> {
        let target = plan.target;
        let io = |source| LoadError::Io { target, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| io(e.into()))?;
        let mut connections = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections {
            let socket = TcpStream::connect(target).map_err(io)?;
            socket.set_nodelay(true).map_err(io)?;
            socket.set_nonblocking(true).map_err(io)?;
            epoll::add(&epoll, &socket, token(index as u64), EventFlags::IN)
                .map_err(|e| io(e.into()))?;
            connections.push(Connection {
                socket,
                exchange: exchange(),
                out: Vec::new(),
                wants_write: false,
            });
        }
        let (timer, open) = match plan.pace {
            Pace::Saturate => (None, false),
            Pace::Open { rate } => {
                let timer = ticking(rate).map_err(|e| io(e.into()))?;
                epoll::add(&epoll, &timer, token(TIMER), EventFlags::IN)
                    .map_err(|e| io(e.into()))?;
                (Some(timer), true)
            }
        };
        let free = (0..streams).flat_map(|_| 0..plan.connections).collect();
        Ok(Self {
            target,
            epoll,
            timer,
            connections,
            free,
            waiting: VecDeque::new(),
            open,
            tally: Tally { window: None },
            done: Vec::new(),
        })
    }

    fn drive(mut self, plan: &Plan, at_window: &mut dyn FnMut()) -> Result<Outcome, LoadError> {
        let begin = Instant::now();
        let window_at = begin + plan.warm_up;
        let end = window_at + plan.window;
        let mut next_due = Due::new(begin, plan.pace);
        let mut last_answer = begin;
        let mut buffer = vec![0; READ_BUFFER];
        let mut events = Vec::with_capacity(plan.connections + 1);

        if !self.open {
            while let Some(index) = self.free.pop() {
                self.send(index, begin)?;
            }
        }
        loop {
            let now = Instant::now();
            if self.tally.window.is_none() && now >= window_at {
                at_window();
                self.tally.window = Some(Counted::new());
            }
            if now >= end {
                break;
            }
            if now.duration_since(last_answer) > STALL {
                return Err(LoadError::Stalled { target: self.target, after: STALL });
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.io(error.into())),
            }
            for event in &events {
                let event: &epoll::Event = event;
                match event.data.u64() {
                    TIMER => self.tick(&mut next_due)?,
                    index => {
                        self.ready(index as usize, event.flags, &mut buffer)?;
                        last_answer = now;
                    }
                }
            }
        }
        at_window();
        Ok(self.tally.finish())
    }

    /// The open loop's clock: everything due until now leaves, or waits for a connection.
    fn tick(&mut self, next_due: &mut Due) -> Result<(), LoadError> {
        if let Some(timer) = &self.timer {
            let mut expirations = [0; 8];
            rustix::io::read(timer, &mut expirations).map_err(|e| self.io(e.into()))?;
        }
        let now = Instant::now();
        while let Some(due) = next_due.pop(now) {
            match self.free.pop() {
                Some(index) => self.send(index, due)?,
                None => self.waiting.push_back(due),
            }
        }
        if self.waiting.len() > MAX_BEHIND {
            return Err(LoadError::Overrun { target: self.target, behind: self.waiting.len() });
        }
        Ok(())
    }

    fn send(&mut self, index: usize, started: Instant) -> Result<(), LoadError> {
        let connection = &mut self.connections[index];
        connection.exchange.send(started, &mut connection.out);
        self.flush(index)
    }

    fn ready(
        &mut self,
        index: usize,
        flags: EventFlags,
        buffer: &mut [u8],
    ) -> Result<(), LoadError> {
        if flags.contains(EventFlags::OUT) {
            self.flush(index)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok(());
        }
        let target = self.target;
        let connection = &mut self.connections[index];
        let read = match connection.socket.read(buffer) {
            Ok(0) => return Err(LoadError::Closed { target }),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(self.io(error)),
        };
        let mut done = std::mem::take(&mut self.done);
        let body_bytes = connection
            .exchange
            .receive(&buffer[..read], &mut done, &mut connection.out)
            .map_err(|Malformed(what)| LoadError::Malformed { target, what })?;
        let now = Instant::now();
        self.tally.body(body_bytes);
        for done in done.drain(..) {
            self.tally.response(&done, now);
            if !self.open {
                connection.exchange.send(now, &mut connection.out);
            } else if let Some(due) = self.waiting.pop_front() {
                connection.exchange.send(due, &mut connection.out);
            } else {
                self.free.push(index);
            }
        }
        self.done = done;
        self.flush(index)
    }

    /// Writes what the connection has to say, and asks for an event if the socket is full.
    fn flush(&mut self, index: usize) -> Result<(), LoadError> {
        let target = self.target;
        let io = |source| LoadError::Io { target, source };
        let connection = &mut self.connections[index];
        while !connection.out.is_empty() {
            match connection.socket.write(&connection.out) {
                Ok(0) => return Err(LoadError::Closed { target }),
                Ok(written) => drop(connection.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(io(error)),
            }
        }
        let wants_write = !connection.out.is_empty();
        if wants_write != connection.wants_write {
            connection.wants_write = wants_write;
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, wants_write);
            epoll::modify(&self.epoll, &connection.socket, token(index as u64), flags)
                .map_err(|e| io(e.into()))?;
        }
        Ok(())
    }

    fn io(&self, source: io::Error) -> LoadError {
        LoadError::Io { target: self.target, source }
    }
}

impl Counted {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            requests: 0,
            failed: 0,
            body_bytes: 0,
            latency: Histogram::new_with_bounds(1, LONGEST_NANOS, 3)
                .expect("three significant figures of nanoseconds to a minute fit"),
        }
    }
}

impl Tally {
    fn body(&mut self, bytes: u64) {
        if let Some(counted) = &mut self.window {
            counted.body_bytes += bytes;
        }
    }

    fn response(&mut self, done: &Done, now: Instant) {
        let Some(counted) = &mut self.window else {
            return;
        };
        counted.requests += 1;
        counted.failed += u64::from(!done.ok);
        let nanos = now.saturating_duration_since(done.started).as_nanos();
        counted.latency.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
    }

    fn finish(self) -> Outcome {
        let counted = self.window.unwrap_or_else(Counted::new);
        Outcome {
            requests: counted.requests,
            failed: counted.failed,
            body_bytes: counted.body_bytes,
            elapsed: counted.since.elapsed(),
            latency: counted.latency,
        }
    }
}

/// When requests of an open loop are due.
struct Due {
    next: Instant,
    period: Option<Duration>,
}

impl Due {
    fn new(begin: Instant, pace: Pace) -> Self {
        let period = match pace {
            Pace::Saturate => None,
            Pace::Open { rate } => Some(period(rate)),
        };
        Self { next: begin + period.unwrap_or_default(), period }
    }

    fn pop(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next;
        self.next += self.period.filter(|_| due <= now)?;
        Some(due)
    }
}

fn period(rate: u32) -> Duration {
    Duration::from_secs(1) / rate.max(1)
}

/// A timer of the kernel's high-resolution kind: epoll's own timeout is rounded up to a millisecond.
fn ticking(rate: u32) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let period = Timespec::try_from(period(rate)).map_err(|_| rustix::io::Errno::RANGE)?;
    let every = Itimerspec { it_interval: period, it_value: period };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    Ok(timer)
}

fn token(index: u64) -> EventData {
    EventData::new_u64(index)
}
