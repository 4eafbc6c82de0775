//! Tokens of service accounts, which the API server verifies.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;

use super::watch::why;
use crate::identity::tokens::{AUDIENCE, TokenError, Tokens};
use crate::index::object::Name;

/// Reviews at a time. When all proxies come at once the API server is not to be flooded.
const CONCURRENT: usize = 32;
/// From the question to the answer, with the wait for one's turn.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes. Those of service accounts have one or two thousand.
const MAX_TOKEN: usize = 16 * 1024;
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Asks the API server whose a token is.
pub struct ReviewedTokens {
    api: Api<TokenReview>,
    turns: Semaphore,
}

impl ReviewedTokens {
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), turns: Semaphore::new(CONCURRENT) }
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, TokenError> {
        let unavailable = |source| TokenError::Unavailable { source };
        // It is never closed.
        let _turn = self.turns.acquire().await.map_err(|e| unavailable(io::Error::other(e)))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        match self.api.create(&PostParams::default(), &review).await {
            Ok(review) => Ok(review.status.unwrap_or_default()),
            Err(error) => {
                let why = why(&error);
                tracing::warn!(why, "the API server does not review tokens");
                Err(unavailable(io::Error::other(why)))
            }
        }
    }
}

impl fmt::Debug for ReviewedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.turns.available_permits();
        f.debug_struct("ReviewedTokens").field("free", &free).finish_non_exhaustive()
    }
}

impl Tokens for ReviewedTokens {
    fn owner<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Name, TokenError>> {
        async move {
            if !is_token(token) {
                return Err(TokenError::Malformed);
            }
            match tokio::time::timeout(DEADLINE, self.review(token)).await {
                Ok(status) => owner(&status?),
                Err(_) => Err(TokenError::Unavailable {
                    source: io::Error::new(io::ErrorKind::TimedOut, "the API server is too slow"),
                }),
            }
        }
        .boxed()
    }
}

/// Whether it has the form of a JSON Web Token, as those of service accounts do. What has not is not worth
/// a question to the API server.
fn is_token(text: &str) -> bool {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        !part.is_empty() && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= MAX_TOKEN && text.split('.').count() == 3 && text.split('.').all(is_part)
}

/// The service account that a review names.
fn owner(status: &TokenReviewStatus) -> Result<Name, TokenError> {
    let refused = |why: String| Err(TokenError::Refused { why });
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().filter(|error| !error.is_empty());
        return refused(why.unwrap_or("it is not a token of this cluster").to_owned());
    }
    // An API server that does not know of audiences names none, and then this one proves nothing.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return refused(format!("it is not meant for {AUDIENCE}"));
    }
    let user = status.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    let account = user.strip_prefix(SERVICE_ACCOUNT).and_then(|name| name.split_once(':'));
    match account {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(Name::new(namespace, name))
        }
        _ => refused(format!("it is of `{user}`, which is no service account")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(status: Value) -> Result<String, String> {
        let status = serde_json::from_value(status).unwrap();
        owner(&status).map(|name| name.to_string()).map_err(|error| error.to_string())
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": { "username": "system:serviceaccount:shop:web" },
        })
    }

    #[test]
    fn what_is_no_token_is_not_asked_about() {
        assert!(is_token("eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiYSJdfQ.aGVsbG8-_w"));
        let long = format!("a.b.{}", "c".repeat(MAX_TOKEN));
        for text in ["", "a", "a.b", "a.b.c.d", "a..c", "a.b.c d", "a.b.c\n", &long] {
            assert!(!is_token(text), "{text}");
        }
    }

    #[test]
    fn a_review_names_a_service_account_or_says_why_not() {
        assert_eq!(told(good()), Ok("shop/web".into()));
        let with = |key: &str, value: Value| {
            let mut status = good();
            status[key] = value;
            told(status).unwrap_err()
        };
        assert!(with("authenticated", json!(false)).contains("not a token of this cluster"));
        assert!(with("audiences", json!(["other"])).contains("meant for meshctl.dev/identity"));
        assert!(with("audiences", json!(null)).contains("meant for meshctl.dev/identity"));
        for user in ["admin", "system:serviceaccount:shop", "system:serviceaccount::web", ""] {
            let why = with("user", json!({ "username": user }));
            assert!(why.contains("no service account"), "{user}: {why}");
        }
        let expired = json!({ "error": "token has expired" });
        assert!(told(expired).unwrap_err().contains("token has expired"));
    }
}
