//! Tokens: what proves to the control plane which service account a proxy runs under.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use subtle::ConstantTimeEq;

use crate::index::object::{Name, is_label};
use crate::state::Shared;

/// Whom a token of Kubernetes has to be meant for, so that one that was given to another program is of
/// no use here.
pub const AUDIENCE: &str = "meshctl.dev/identity";

/// Whoever knows whose a token is.
pub trait Tokens: fmt::Debug + Send + Sync + 'static {
    /// The service account that a token belongs to, as `namespace/name`.
    ///
    /// # Errors
    /// When the token is none, or that cannot be told.
    fn owner<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Name, TokenError>>;
}

/// A token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token is not the one that pod {pod} was given")]
    Wrong { pod: Name },
    #[error("the token is of pod {pod}, which does not exist")]
    NoPod { pod: Name },
    #[error("the token proves nothing: {why}")]
    Refused { why: String },
    #[error("tokens cannot be verified")]
    Unavailable { source: io::Error },
}

/// Tokens of the local mesh, `NAMESPACE/POD:SECRET`. The supervisor gives each pod its own, in a file
/// `NAMESPACE.POD` of the folder.
#[derive(Debug)]
pub struct LocalTokens {
    folder: PathBuf,
    shared: Arc<Shared>,
}

impl LocalTokens {
    /// Of the mesh whose state is in `state_dir`.
    pub fn new(state_dir: &Path, shared: Arc<Shared>) -> Self {
        Self { folder: state_dir.join("tokens"), shared }
    }
}

impl Tokens for LocalTokens {
    fn owner<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Name, TokenError>> {
        async {
            let token = Token::parse(token).ok_or(TokenError::Malformed)?;
            let path = self.folder.join(file_name(&token.pod));
            let read = tokio::task::spawn_blocking(move || read(&path)).await;
            let given = match read.unwrap_or_else(|error| Err(error.into())) {
                Ok(given) => given,
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(TokenError::Unavailable { source }),
            };
            let pod = token.pod.clone();
            if !given.is_some_and(|given| given.is(&token)) {
                return Err(TokenError::Wrong { pod });
            }
            // A proxy may be faster than the news of its pod.
            match tokio::time::timeout(NEWS, self.service_account(&pod)).await {
                Ok(service_account) => Ok(Name::new(pod.namespace, service_account)),
                Err(_) => Err(TokenError::NoPod { pod }),
            }
        }
        .boxed()
    }
}

impl LocalTokens {
    /// Waits until the pod is known.
    async fn service_account(&self, pod: &Name) -> String {
        let mut revision = self.shared.index.read().revision();
        loop {
            revision.mark_unchanged();
            if let Some(pod) = self.shared.index.read().objects().pod(pod) {
                return pod.service_account.clone();
            }
            if revision.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}

/// How long it may take until a pod is known whose token is.
const NEWS: Duration = Duration::from_secs(2);

type Secret = [u8; 32];

/// The parts of a local token.
#[derive(Debug)]
pub struct Token {
    pod: Name,
    secret: Secret,
}

impl Token {
    /// `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let (pod, secret) = text.split_once(':')?;
        let (namespace, name) = pod.split_once('/')?;
        // With its names the token says which file to read: nothing but names may get there.
        let sound = is_label(namespace) && name.split('.').all(is_label);
        let fits = namespace.len() + name.len() < MAX_FILE_NAME;
        let pod = Name::new(namespace, name);
        (sound && fits).then_some(Self { pod, secret: parse_secret(secret)? })
    }

    /// In a time that does not tell how much of the secret was right.
    fn is(&self, other: &Self) -> bool {
        self.pod == other.pod && bool::from(self.secret.ct_eq(&other.secret))
    }
}

/// Bytes that file systems allow for a file's name.
const MAX_FILE_NAME: usize = 255;

/// Bytes of a token, and some.
const MAX_TOKEN: u64 = 512;

fn file_name(pod: &Name) -> String {
    format!("{}.{}", pod.namespace, pod.name)
}

/// 64 hexadecimal digits in lower case.
fn parse_secret(text: &str) -> Option<Secret> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut secret = Secret::default();
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != secret.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in secret.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(secret)
}

/// The token in a file of the supervisor's; `None` when it is none.
fn read(path: &Path) -> io::Result<Option<Token>> {
    // Only what the supervisor wrote there counts, not what a link leads to. Nor may opening it wait
    // for a writer, as it would with a pipe.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    file.take(MAX_TOKEN).read_to_string(&mut text)?;
    Ok(Token::parse(text.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::object::{Object, Pod};

    fn web() -> Pod {
        let name = Name::new("shop", "web-1");
        Pod { name, service_account: "web".into(), ..Pod::default() }
    }

    fn tokens() -> (tempfile::TempDir, LocalTokens) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tokens")).unwrap();
        let shared = Arc::new(Shared::default());
        let tokens = LocalTokens::new(folder.path(), shared);
        (folder, tokens)
    }

    fn told(tokens: &LocalTokens, token: &str) -> Result<Name, TokenError> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(tokens.owner(token))
    }

    fn secret(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    #[test]
    fn a_token_is_as_good_as_its_file() {
        let (folder, tokens) = tokens();
        let file = folder.path().join("tokens/shop.web-1");
        let token = |digit| format!("shop/web-1:{}", secret(digit));
        assert!(matches!(told(&tokens, &token('a')), Err(TokenError::Wrong { .. })));
        std::fs::write(&file, token('a')).unwrap();
        assert!(matches!(told(&tokens, &token('b')), Err(TokenError::Wrong { .. })));
        assert!(matches!(told(&tokens, &token('a')), Err(TokenError::NoPod { .. })));

        tokens.shared.index.write().apply(Object::Pod(web()));
        assert_eq!(told(&tokens, &token('a')).unwrap(), Name::new("shop", "web"));
        std::fs::write(&file, token('a') + "\n").unwrap();
        assert!(told(&tokens, &token('a')).is_ok());

        let other = token('a').replace("web-1", "web-2");
        for damaged in ["", "\n", &secret('a'), &token('A'), &(token('a') + "a"), &other] {
            std::fs::write(&file, damaged).unwrap();
            assert!(matches!(told(&tokens, &token('a')), Err(TokenError::Wrong { .. })));
        }
    }

    #[tokio::test]
    async fn a_proxy_may_ask_before_its_pod_is_known() {
        let (folder, tokens) = tokens();
        let token = format!("shop/web-1:{}", secret('a'));
        std::fs::write(folder.path().join("tokens/shop.web-1"), &token).unwrap();
        let shared = Arc::clone(&tokens.shared);
        let asked = tokio::spawn(async move { tokens.owner(&token).await });
        tokio::task::yield_now().await;
        shared.index.write().apply(Object::Pod(web()));
        assert_eq!(asked.await.unwrap().unwrap(), Name::new("shop", "web"));
    }

    #[test]
    fn links_and_folders_are_no_secrets() {
        let (folder, tokens) = tokens();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, format!("shop/web-1:{}", secret('a'))).unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.path().join("tokens/shop.web-1")).unwrap();
        std::fs::create_dir(folder.path().join("tokens/shop.web-2")).unwrap();
        for pod in ["web-1", "web-2"] {
            let refused = told(&tokens, &format!("shop/{pod}:{}", secret('a')));
            assert!(refused.is_err(), "{pod}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        let good = secret('a');
        for text in [
            "",
            ":",
            "/:",
            &good,
            &format!("shop:{good}"),
            &format!("shop/web-1:{}", &good[1..]),
            &format!("shop/web-1:{good}0"),
            &format!("shop/web-1:{}", secret('g')),
            &format!("../web-1:{good}"),
            &format!("shop/../web:{good}"),
            &format!("shop/a/b:{good}"),
            &format!("shop/.:{good}"),
            &format!("shop/..:{good}"),
            &format!("/web-1:{good}"),
            &format!("sh.op/web-1:{good}"),
            &format!("shop/web\0:{good}"),
            &format!("shop/{}:{good}", vec!["a"; 200].join(".")),
        ] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
        assert!(Token::parse(&format!("shop/web.v2-1:{good}")).is_some());
    }

    proptest! {
        #[test]
        fn no_text_panics_or_leaves_the_folder(
            text in prop_oneof![
                any::<String>(),
                "[a-z./:0-9\\-]{0,100}",
                "[a-z./\\-]{1,30}/[a-z./\\-]{1,30}:[0-9a-f]{64}",
            ],
        ) {
            if let Some(token) = Token::parse(&text) {
                let path = Path::new("/tokens").join(file_name(&token.pod));
                prop_assert_eq!(path.parent(), Some(Path::new("/tokens")));
                let mut parts = path.components();
                prop_assert!(parts.all(|part| !matches!(part, std::path::Component::ParentDir)));
            }
        }

        /// Two pods never share a file: a namespace has no dots.
        #[test]
        fn each_pod_has_a_file_of_its_own(
            one in ("[a-c]{1,2}", "[a-c.]{1,4}"),
            other in ("[a-c]{1,2}", "[a-c.]{1,4}"),
        ) {
            let name = |(namespace, pod): &(String, String)| {
                let token = Token::parse(&format!("{namespace}/{pod}:{}", secret('a')))?;
                Some(file_name(&token.pod))
            };
            if let (Some(first), Some(second)) = (name(&one), name(&other)) {
                prop_assert_eq!(first == second, one == other);
            }
        }
    }
}
