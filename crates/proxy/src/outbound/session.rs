//! Sessions: requests of one client stay at the endpoint that had its first.
//!
//! A cookie or header says which endpoint that is, by hashes: a client learns no address, and can
//! choose among the endpoints of the route only. A session whose endpoint is gone begins anew at
//! another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use mesh_layers::{Affinity, Request, Response};
use mesh_model::route::{Session, SessionBy};

use super::backend::{BackendStack, stable_hash};
use crate::exchange::Exchange;

/// Seconds by which the clocks of two proxies may differ: a client takes a session from one to another.
const SKEW: u64 = 60;

/// The sessions of one rule.
#[derive(Debug)]
pub(super) struct Sessions {
    session: Session,
    /// Of the header, if it is one.
    header: Option<HeaderName>,
}

/// What a client brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    backend: u64,
    endpoint: u64,
    /// Seconds since the Unix epoch.
    began: u64,
    used: u64,
}

/// How a request's response is to be marked.
#[derive(Debug)]
pub(super) struct Answer {
    sessions: Arc<Sessions>,
    token: Option<Token>,
    now: u64,
    backend: u64,
    exchange: Option<Arc<Exchange>>,
}

impl Sessions {
    pub(super) fn new(session: Session) -> Self {
        let header = match session.by {
            SessionBy::Header => HeaderName::from_bytes(session.name.as_bytes()).ok(),
            SessionBy::Cookie { .. } => None,
        };
        Self { session, header }
    }

    /// The backend that a request's session is with.
    pub(super) fn begin(self: &Arc<Self>, request: Request) -> (Option<u64>, Request, Answer) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = now.as_secs();
        let token = self.token(request.headers()).filter(|token| self.is_alive(token, now));
        let exchange = Exchange::of(&request).cloned();
        let answer = Answer { sessions: Arc::clone(self), token, now, backend: 0, exchange };
        (token.map(|token| token.backend), request, answer)
    }

    fn token(&self, headers: &HeaderMap) -> Option<Token> {
        if let Some(name) = &self.header {
            return Token::read(headers.get(name)?.to_str().ok()?);
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
        pairs.find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == self.session.name).then(|| Token::read(value)).flatten()
        })
    }

    fn is_alive(&self, token: &Token, now: u64) -> bool {
        let within = |since: u64, limit: Option<Duration>| {
            since <= now.saturating_add(SKEW)
                && limit.is_none_or(|limit| now.saturating_sub(since) < limit.as_secs().max(1))
        };
        within(token.began, self.session.absolute) && within(token.used, self.session.idle)
    }

    /// Marks a response with the session.
    fn mark(&self, token: &Token, headers: &mut HeaderMap) {
        let text = token.to_string();
        let Session { name, by, absolute, .. } = &self.session;
        let (header, text) = match by {
            SessionBy::Header => match &self.header {
                Some(header) => (header.clone(), text),
                None => return,
            },
            SessionBy::Cookie { permanent } => {
                let lasts = absolute.filter(|_| *permanent);
                let lasts = lasts.map(|time| format!("; Max-Age={}", time.as_secs().max(1)));
                let lasts = lasts.unwrap_or_default();
                (SET_COOKIE, format!("{name}={text}; Path=/; HttpOnly; SameSite=Lax{lasts}"))
            }
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            match by {
                SessionBy::Header => headers.insert(header, value).map(drop).unwrap_or_default(),
                SessionBy::Cookie { .. } => drop(headers.append(header, value)),
            }
        }
    }
}

impl Answer {
    /// The request goes to a backend: there, to the endpoint of its session.
    pub(super) fn at(self, stack: &BackendStack, request: &mut Request) -> Self {
        let backend = stable_hash(stack.info.text.as_ref());
        if let Some(token) = self.token.filter(|token| token.backend == backend) {
            let found = stack.balancer().find(|addr| stable_hash(addr) == token.endpoint);
            if let Some(addr) = found {
                request.extensions_mut().insert(Affinity::Endpoint(addr));
            }
        }
        Self { backend, ..self }
    }

    /// Tells the client where it was, if it does not know.
    pub(super) fn respond(self, mut response: Response) -> Response {
        let endpoint: Option<SocketAddr> = self.exchange.and_then(|exchange| exchange.endpoint());
        let Some(endpoint) = endpoint else { return response };
        let endpoint = stable_hash(endpoint);
        let stays = |token: &Token| token.backend == self.backend && token.endpoint == endpoint;
        let before = self.token.filter(stays);
        // A session that can idle out is told anew that it was used.
        let is_fresh =
            |token: &Token| self.sessions.session.idle.is_none() || token.used == self.now;
        if before.as_ref().is_some_and(is_fresh) {
            return response;
        }
        let began = before.map_or(self.now, |token| token.began);
        let token = Token { backend: self.backend, endpoint, began, used: self.now };
        self.sessions.mark(&token, response.headers_mut());
        response
    }
}

impl Token {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            let sound = part.len() <= 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
            sound.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        });
        let mut next = || parts.next().flatten();
        let token = Self { backend: next()?, endpoint: next()?, began: next()?, used: next()? };
        parts.next().is_none().then_some(token)
    }
}

/// Four hexadecimal numbers, divided by dots.
impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backend, endpoint, began, used } = self;
        write!(f, "{backend:x}.{endpoint:x}.{began:x}.{used:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(by: SessionBy) -> Sessions {
        let (absolute, idle) = (Some(Duration::from_secs(100)), Some(Duration::from_secs(10)));
        Sessions::new(Session { name: "shop".into(), by, absolute, idle })
    }

    const TOKEN: Token = Token { backend: 1, endpoint: u64::MAX, began: 1000, used: 1010 };

    #[test]
    fn tokens_are_read_as_they_are_written() {
        assert_eq!(Token::read(&TOKEN.to_string()), Some(TOKEN));
        for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.x", "1.2.3.+4", "1.2.3.11111111111111111"] {
            assert_eq!(Token::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn cookies_and_headers_bring_them() {
        let cookie = sessions(SessionBy::Cookie { permanent: true });
        let mut response = HeaderMap::new();
        cookie.mark(&TOKEN, &mut response);
        let set = response[SET_COOKIE].to_str().unwrap();
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=100"), "{set}");
        let (pair, _) = set.split_once(';').unwrap();
        let request = HeaderMap::from_iter([(
            COOKIE,
            HeaderValue::try_from(format!("other=1; {pair}")).unwrap(),
        )]);
        assert_eq!(cookie.token(&request), Some(TOKEN));

        let header = sessions(SessionBy::Header);
        let mut headers = HeaderMap::new();
        header.mark(&TOKEN, &mut headers);
        assert_eq!(header.token(&headers), Some(TOKEN));
        assert_eq!(header.token(&request), None);
    }

    #[test]
    fn sessions_end() {
        let sessions = sessions(SessionBy::Header);
        assert!(sessions.is_alive(&TOKEN, 1019));
        assert!(!sessions.is_alive(&TOKEN, 1020), "idle");
        assert!(!sessions.is_alive(&Token { used: 1099, ..TOKEN }, 1100), "over");
        assert!(sessions.is_alive(&TOKEN, 950), "by a clock that is ahead");
        assert!(!sessions.is_alive(&TOKEN, 949), "of the future");
        let forged = Token { used: u64::MAX, ..TOKEN };
        assert!(!sessions.is_alive(&forged, 1010));
    }
}
