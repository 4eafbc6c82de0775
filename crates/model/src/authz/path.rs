//! Paths in the one form in which policies compare them.
//!
//! Whoever decides by path must read it as the application will, and applications differ. So a path
//! is brought into a canonical form where all of them agree, and is *ambiguous* where they do not:
//! a deny rule then takes it for a match and an allow rule does not.

use std::borrow::Cow;
use std::fmt;

/// A path that servers read in different ways, such as one with `..`, `%2F` or `;`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

/// The canonical form of a request's path (without its query): characters that need no encoding are
/// decoded, others encoded in upper case, empty and `.` segments and a trailing slash are left out.
///
/// # Errors
/// When servers would not agree about it.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if is_canonical(path) {
        return Ok(path.into());
    }
    // Some servers take `//host/path` for another host's `/path`.
    if !path.starts_with('/') || path.starts_with("//") {
        return Err(Ambiguous);
    }
    let decoded = decode(path.as_bytes())?;
    // Overlong encodings of `.` and `/` are not UTF-8, but lenient decoders take them.
    if std::str::from_utf8(&decoded).is_err() {
        return Err(Ambiguous);
    }
    let mut canonical = String::with_capacity(path.len());
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            // Clients resolve it before they send; what is left of it means different things to
            // servers that resolve it and those that do not.
            b".." => return Err(Ambiguous),
            _ => {
                canonical.push('/');
                encode(segment, &mut canonical);
            }
        }
    }
    if canonical.is_empty() {
        canonical.push('/');
    }
    Ok(canonical.into())
}

/// Whether nothing needs to be done, which is so for nearly all requests.
fn is_canonical(path: &str) -> bool {
    let mut before = None;
    for byte in path.bytes() {
        let plain = match before {
            None => byte == b'/',
            // Dots at a segment's beginning are left to the careful way.
            Some(b'/') => is_plain(byte) && byte != b'.',
            Some(_) => is_plain(byte) || byte == b'/',
        };
        if !plain {
            return false;
        }
        before = Some(byte);
    }
    before.is_some_and(|last| last != b'/') || path == "/"
}

/// What stands for itself within a segment: `pchar` of RFC 3986 but `;`.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

fn decode(path: &[u8]) -> Result<Vec<u8>, Ambiguous> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let hex = |i: usize| path.get(i).and_then(|b| char::from(*b).to_digit(16));
        if byte != b'%' {
            at += 1;
            decoded.push(byte);
        } else if let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2)) {
            at += 3;
            let byte = u8::try_from(high * 16 + low).map_err(|_| Ambiguous)?;
            // A second decoding would find something else; and some decode slashes before they
            // split, some after.
            if byte == b'%' || byte == b'/' {
                return Err(Ambiguous);
            }
            decoded.push(byte);
        } else {
            return Err(Ambiguous);
        }
        // Some take `\` for `/`, some cut a segment at `;`, some cut the path at a NUL.
        match decoded.last() {
            Some(b'\\' | b';') => return Err(Ambiguous),
            Some(byte) if byte.is_ascii_control() => return Err(Ambiguous),
            _ => {}
        }
    }
    Ok(decoded)
}

fn encode(segment: &[u8], into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in segment {
        if is_plain(*byte) {
            into.push(char::from(*byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// `/exact`, or `/prefix/*` for the prefix and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// Canonical; empty for the prefix of everything.
    path: String,
    prefix: bool,
}

/// A text that is no pattern of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    #[error("a path starts with `/`")]
    NoSlash,
    #[error("`*` stands at the end only, as a segment of its own: `/prefix/*`")]
    Star,
    #[error(
        "no path that servers read alike: leave out `..`, `;`, `\\`, `%25`, `%2F` and a leading `//`"
    )]
    Ambiguous,
}

impl PathPattern {
    /// # Errors
    /// When it is not a path, or one that no request can have unambiguously.
    pub fn new(text: &str) -> Result<Self, InvalidPath> {
        let (path, prefix) = match text.strip_suffix("/*") {
            Some("") => return Ok(Self { path: String::new(), prefix: true }),
            Some(path) => (path, true),
            None => (text, false),
        };
        if !path.starts_with('/') {
            return Err(InvalidPath::NoSlash);
        }
        if path.contains('*') {
            return Err(InvalidPath::Star);
        }
        let path = canonical(path).map_err(|Ambiguous| InvalidPath::Ambiguous)?.into_owned();
        let path = if prefix && path == "/" { String::new() } else { path };
        Ok(Self { path, prefix })
    }

    /// Whether it covers a canonical path.
    pub fn matches(&self, canonical: &str) -> bool {
        if !self.prefix {
            return canonical == self.path;
        }
        let rest = canonical.strip_prefix(&self.path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// As [`PathPattern::new`] reads it.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A star of the path itself must not be read as the pattern's.
        write!(f, "{}{}", self.path.replace('*', "%2A"), if self.prefix { "/*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_for_what_servers_read_alike() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a/b"),
            ("/a/", "/a"),
            ("/a//", "/a"),
            ("/./a/./b/.", "/a/b"),
            ("/%2e/a/%2E/b", "/a/b"),
            ("/%61%64min", "/admin"),
            ("/a%3ab", "/a:b"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/a\u{e9}", "/a%C3%A9"),
            ("/a%20b%3f", "/a%20b%3F"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
            ("/a..b/..c", "/a..b/..c"),
        ] {
            assert_eq!(canonical(path).as_deref(), Ok(form), "{path}");
        }
    }

    #[test]
    fn what_servers_read_differently_is_ambiguous() {
        for path in [
            "",
            "*",
            "a",
            "//a",
            "//",
            "/a/../b",
            "/..",
            "/a/%2e%2e/b",
            "/a/.%2E",
            "/a%2fb",
            "/a%2Fb",
            "/a\\b",
            "/a%5cb",
            "/a;x=1/b",
            "/a%3Bx",
            "/a%00",
            "/a%0a",
            "/a%",
            "/a%2",
            "/a%zz",
            "/%252e%252e/a",
            "/a%25",
            "/%c0%ae%c0%ae/a",
            "/a%ff",
        ] {
            assert_eq!(canonical(path), Err(Ambiguous), "{path}");
        }
    }

    #[test]
    fn patterns_match_whole_segments() {
        let matches = |pattern: &str, path: &str| {
            PathPattern::new(pattern).unwrap().matches(&canonical(path).unwrap())
        };
        for (pattern, path) in [
            ("/a", "/a"),
            ("/a", "/a/"),
            ("/a/", "/a"),
            ("/a/*", "/a"),
            ("/a/*", "/a/b/c"),
            ("/a/*", "/a//b"),
            ("/*", "/"),
            ("/*", "/x"),
            ("/caf\u{e9}", "/caf%c3%a9"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [("/a", "/a/b"), ("/a", "/A"), ("/a/*", "/ab"), ("/a/*", "/")] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn an_encoded_star_is_not_the_patterns() {
        let pattern = PathPattern::new("/%2a").unwrap();
        assert_eq!(pattern.to_string(), "/%2A");
        assert!(pattern.matches(&canonical("/*").unwrap()));
        assert!(!pattern.matches(&canonical("/x").unwrap()));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "a", "*", "/a*", "/*/b", "/a/../b", "/a;b", "//a", "/a%2f/*"] {
            assert!(PathPattern::new(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_forms_stay(path in "(/[a-c.%2eE/;é\\\\ ]{0,4}){0,4}") {
            if let Ok(form) = canonical(&path) {
                prop_assert_eq!(canonical(&form), Ok(form.clone()));
                prop_assert!(form.starts_with('/'));
                prop_assert!(!form.split('/').any(|segment| segment == "." || segment == ".."));
                prop_assert!(!form.contains("//"));
            }
        }

        /// Whatever way a path is written, it is either the same path or ambiguous.
        #[test]
        fn encoding_changes_nothing(segments in prop::collection::vec("[a-zA-Z0-9._~-]{1,5}", 1..4),
                                    encoded in prop::collection::vec(any::<bool>(), 32)) {
            let plain = format!("/{}", segments.join("/"));
            let mut written = String::new();
            for (at, byte) in plain.bytes().enumerate() {
                if byte != b'/' && encoded[at % encoded.len()] {
                    written += &format!("%{byte:02x}");
                } else {
                    written.push(char::from(byte));
                }
            }
            prop_assert_eq!(canonical(&written), canonical(&plain));
        }

        #[test]
        fn patterns_read_what_they_write(text in "(/[a-c%20.]{1,4}){0,3}(/\\*)?") {
            if let Ok(pattern) = PathPattern::new(&text) {
                prop_assert_eq!(PathPattern::new(&pattern.to_string()), Ok(pattern));
            }
        }
    }
}
