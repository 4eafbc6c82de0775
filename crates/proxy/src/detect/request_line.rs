//! Whether bytes turn into an HTTP/1 request, in the eyes of any server that somebody may run.
//!
//! Servers take more than the standard allows: empty lines and blanks before the request, methods of
//! any length in any case, blanks of other kinds, versions that do not exist, lines without one. All of
//! that is a request here. Who reads it as bytes would pass on whatever its client makes up, the name
//! of another caller included. The state is small, so that a connection carried as bytes can be watched
//! to the end of its first line however slowly that comes.

/// Servers read no longer lines.
const MAX_LINE: u32 = 1 << 20;
const VERSION: &[u8] = b"http/";
const ABSOLUTE: &[u8] = b"http";

/// What the line is, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Open,
    Http,
    Not,
}

/// Reads a first line bit by bit.
#[derive(Clone, Debug)]
pub(crate) struct RequestLine {
    verdict: Verdict,
    /// Words begun; the first is the method.
    words: u32,
    in_word: bool,
    /// Bytes of the word, as far as they are of interest.
    length: u8,
    is_get: bool,
    /// So far the word begins like a version.
    like_version: bool,
    /// So far the word begins like the target of a request: a path, `*` or a URL.
    like_target: bool,
    target: bool,
    third_is_version: bool,
    left: u32,
}

impl Default for RequestLine {
    fn default() -> Self {
        Self {
            verdict: Verdict::Open,
            words: 0,
            in_word: false,
            length: 0,
            is_get: true,
            like_version: false,
            like_target: false,
            target: false,
            third_is_version: false,
            left: MAX_LINE,
        }
    }
}

impl RequestLine {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut line = Self::default();
        line.feed(bytes);
        line
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether what has come looks like `METHOD SP` and the beginning of a target.
    pub(crate) fn has_target(&self) -> bool {
        self.verdict == Verdict::Open && (self.target || (self.words == 2 && self.is_target()))
    }

    /// Goes on with more of the connection's bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Verdict {
        for byte in bytes {
            if self.verdict != Verdict::Open {
                break;
            }
            self.take(*byte);
        }
        self.verdict
    }

    fn take(&mut self, byte: u8) {
        self.left -= 1;
        if matches!(byte, b'\r' | b'\n') {
            if self.words > 0 {
                self.verdict = self.at_end();
            }
        } else if is_blank(byte) {
            self.end_word();
        } else {
            self.take_in_word(byte);
        }
        if self.left == 0 && self.verdict == Verdict::Open {
            self.verdict = Verdict::Not;
        }
    }

    fn take_in_word(&mut self, byte: u8) {
        if !self.in_word {
            self.in_word = true;
            self.words = self.words.saturating_add(1);
            (self.length, self.like_version, self.like_target) = (0, true, true);
        }
        let at = usize::from(self.length);
        self.length = self.length.saturating_add(1);
        let small = byte.to_ascii_lowercase();
        if self.words == 1 {
            self.is_get &= b"GET".get(at) == Some(&byte);
            if !is_token(byte) {
                self.verdict = Verdict::Not;
            }
            return;
        }
        self.like_version &= at >= VERSION.len() || VERSION[at] == small;
        let rooted = at == 0 && matches!(byte, b'/' | b'*');
        if rooted {
            self.target |= self.words == 2;
        }
        self.like_target &= at >= ABSOLUTE.len() || ABSOLUTE[at] == small;
    }

    fn end_word(&mut self) {
        if !std::mem::take(&mut self.in_word) {
            return;
        }
        match self.words {
            1 => self.is_get &= self.length == 3,
            2 => self.target |= self.is_target(),
            3 => self.third_is_version = self.is_version(),
            _ => {}
        }
    }

    fn is_version(&self) -> bool {
        self.like_version && usize::from(self.length) >= VERSION.len()
    }

    fn is_target(&self) -> bool {
        self.target || (self.like_target && usize::from(self.length) >= ABSOLUTE.len())
    }

    /// `METHOD target version`, where anything may stand around the version, or the oldest form,
    /// `GET target`.
    fn at_end(&mut self) -> Verdict {
        self.end_word();
        let oldest = self.words == 2 && self.is_get && self.target;
        let last_is_version = self.words > 1 && self.is_version();
        match oldest || last_is_version || self.third_is_version {
            true => Verdict::Http,
            false => Verdict::Not,
        }
    }
}

/// What separates words, line ends aside: also what only some servers take for it.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// Of which methods are made (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_some_server_takes_for_a_request_is_one() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "\r\n\n\r\nGET / HTTP/1.1\r\n",
            " \tGET / HTTP/1.1\n",
            "get / http/1.1\r",
            "GET\t/\tHTTP/1.1\r\n",
            "GET  /  HTTP/1.1  \r\n",
            "GET / HTTP/9.9\r\n",
            "GET / HTTP/1.1 and more\r\n",
            "GET /a b c HTTP/1.0\r\n",
            "A-METHOD-THAT-IS-LONGER-THAN-ANY-THAT-EXISTS / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "CONNECT a:1 HTTP/1.1\r\n",
            "GET HTTP/1.1\r\n",
            "GET /\r\n",
            "GET http://a\r\n",
        ] {
            assert_eq!(RequestLine::of(line.as_bytes()).verdict(), Verdict::Http, "{line:?}");
        }
    }

    #[test]
    fn what_other_protocols_say_is_none() {
        for bytes in [
            &b"SET key value\r\n"[..],
            b"GET key\r\n",
            b"get /key\r\n",
            b"EHLO host\r\n",
            b"PING\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"OPTIONS rtsp://a RTSP/1.0\r\n",
            b"INVITE sip:a SIP/2.0\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"{\"request\":\"GET / HTTP/1.1\"}\n",
            b"<13>Nov 26 nginx: \"GET / HTTP/1.1\" 200\n",
            b"127.0.0.1 - - [26/Nov/2026] \"GET / HTTP/1.1\" 200 2\n",
            b"\x00\x01\x02",
            b"\x16\x03\x01",
        ] {
            let verdict = RequestLine::of(bytes).verdict();
            assert_eq!(verdict, Verdict::Not, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn the_beginning_of_a_target_is_seen() {
        for (bytes, expected) in [
            ("GET /", true),
            ("\r\nPOST http", true),
            ("GET / HTTP/1.", true),
            ("OPTIONS *", true),
            ("GET htt", false),
            ("GET ", false),
            ("SET key /value", false),
            ("GET", false),
            ("GET /\r\n", false),
        ] {
            assert_eq!(RequestLine::of(bytes.as_bytes()).has_target(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_not_read_for_ever() {
        let mut line = RequestLine::of(b"GET /");
        let part = [b'a'; 1 << 16];
        for _ in 0..15 {
            assert_eq!(line.feed(&part), Verdict::Open);
        }
        assert_eq!(line.feed(&part), Verdict::Not);
    }

    proptest! {
        #[test]
        fn how_it_is_cut_makes_no_difference(
            bytes in "[\r\n]{0,2}[A-Za-z/ ]{0,4}[ \t]{0,2}[/*a]{0,2} (HTTP/1.1|x)?[ a]{0,2}(\r\n)?",
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = bytes.as_bytes();
            let (before, after) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut line = RequestLine::of(before);
            prop_assert_eq!(line.feed(after), RequestLine::of(bytes).verdict());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            RequestLine::of(&bytes);
        }
    }
}
