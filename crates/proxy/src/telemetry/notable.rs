//! The latest requests worth remembering: failed by the mesh, denied, retried or slow, each with the
//! decisions that were taken and the objects behind them. `meshctl explain` asks for them.
//!
//! A ring of fixed size, and only such requests write to it.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use mesh_model::{Direction, Reason};
use parking_lot::Mutex;

/// How many are kept. About 1 KiB each.
pub const KEPT: usize = 256;
/// Longer texts are cut. Bytes.
const MAX_TEXT: usize = 200;
/// Tries that are told of one request; further ones are not.
pub(crate) const MAX_TRIES: usize = 8;
/// Without an answer for so long, a request is slow.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

/// What a request is called, in the response and for `meshctl explain`. Unlikely to be that of
/// another proxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// 16 hexadecimal digits.
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id has 16 hexadecimal digits")]
pub struct InvalidId;

impl FromStr for RequestId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or(InvalidId)
    }
}

/// Why a request is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Failed,
    Denied,
    Retried,
    Slow,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Retried => "retried",
            Self::Slow => "slow",
        }
    }
}

/// A request, and what was decided about it.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub id: RequestId,
    pub started: SystemTime,
    pub direction: Direction,
    pub source: SocketAddr,
    pub method: String,
    pub authority: String,
    pub path: String,
    pub why: Why,
    pub parent: Arc<str>,
    pub route: Arc<str>,
    pub tries: Vec<Try>,
    /// 0: the client went away before.
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub reason: Option<Reason>,
    pub message: String,
    pub policy: String,
    pub duration: Duration,
    pub identity: String,
}

/// One try. Without an endpoint, there was none to be had.
#[derive(Clone, Debug)]
pub struct Try {
    pub backend: Arc<str>,
    pub endpoint: Option<SocketAddr>,
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub reason: Option<Reason>,
    pub duration: Duration,
}

/// The ring.
#[derive(Debug)]
pub struct Notable {
    kept: Mutex<VecDeque<Arc<Remembered>>>,
    base: u32,
    next: AtomicU32,
}

impl Default for Notable {
    fn default() -> Self {
        let kept = Mutex::new(VecDeque::new());
        Self { kept, base: rand::random(), next: AtomicU32::new(0) }
    }
}

impl Notable {
    /// An id that nobody has yet.
    pub fn id(&self) -> RequestId {
        let number = self.next.fetch_add(1, Relaxed);
        RequestId(u64::from(self.base) << 32 | u64::from(number))
    }

    /// Keeps a request; the oldest is forgotten for it.
    pub fn remember(&self, mut request: Remembered) {
        for text in [
            &mut request.method,
            &mut request.authority,
            &mut request.path,
            &mut request.message,
            &mut request.policy,
            &mut request.identity,
        ] {
            cut(text);
        }
        let request = Arc::new(request);
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
    }

    /// The latest, newest first; only those of an id, and at most so many.
    pub fn latest(&self, id: Option<RequestId>, limit: usize) -> Vec<Arc<Remembered>> {
        let kept = self.kept.lock();
        let wanted = kept.iter().rev().filter(|request| id.is_none_or(|id| id == request.id));
        wanted.take(limit).cloned().collect()
    }
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(notable: &Notable, path: &str) -> Remembered {
        Remembered {
            id: notable.id(),
            started: SystemTime::UNIX_EPOCH,
            direction: Direction::Outbound,
            source: ([127, 0, 0, 1], 1).into(),
            method: "GET".into(),
            authority: "tax".into(),
            path: path.into(),
            why: Why::Failed,
            parent: Arc::default(),
            route: Arc::default(),
            tries: Vec::new(),
            status: 503,
            grpc_status: None,
            reason: Some(Reason::QueueFull),
            message: String::new(),
            policy: String::new(),
            duration: Duration::ZERO,
            identity: String::new(),
        }
    }

    #[test]
    fn the_latest_are_kept_and_no_more() {
        let notable = Notable::default();
        for number in 0..KEPT + 10 {
            notable.remember(request(&notable, &format!("/{number}")));
        }
        let all = notable.latest(None, usize::MAX);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0].path, format!("/{}", KEPT + 9));
        assert_eq!(notable.latest(None, 3).len(), 3);
        let one = notable.latest(Some(all[5].id), usize::MAX);
        assert_eq!((one.len(), one[0].path.as_str()), (1, all[5].path.as_str()));
    }

    #[test]
    fn what_a_client_sends_is_cut() {
        let notable = Notable::default();
        notable.remember(request(&notable, &"/ä".repeat(1 << 16)));
        let kept = &notable.latest(None, 1)[0].path;
        assert!(kept.len() <= MAX_TEXT + 3 && kept.ends_with('…'), "{kept}");
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = Notable::default().id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "1", "000000000000000g", "+00000000000000f", "00000000000000000"] {
            assert_eq!(bad.parse::<RequestId>(), Err(InvalidId), "{bad}");
        }
    }
}
