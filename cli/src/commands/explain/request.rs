//! A request in words: `GET /cart -H 'x-beta: 1'`, as curl has it.

use http::{HeaderName, HeaderValue, Method, Uri};
use mesh_api::ext;

/// A request to ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Asked {
    /// Reads it; the method may be left out and is GET then.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut words = words(text)?.into_iter().peekable();
        let method = words.next_if(|word| !word.starts_with(['/', '-'])).unwrap_or("GET".into());
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .map_err(|_| format!("\"{method}\" is not a method"))?;
        let path = words.next_if(|word| word.starts_with('/'));
        let path = path.ok_or("a request has a path, such as GET /cart")?;
        Uri::builder()
            .path_and_query(path.as_str())
            .build()
            .map_err(|_| format!("\"{path}\" is not a path; spaces are %20"))?;
        let mut headers = Vec::new();
        while let Some(word) = words.next() {
            let header = match word.as_str() {
                "-H" | "--header" => words.next().ok_or("after -H comes a header: NAME:VALUE")?,
                glued if glued.starts_with("-H") => glued[2..].to_owned(),
                other => return Err(format!("\"{other}\" is neither -H nor a header")),
            };
            headers.push(header_of(&header)?);
        }
        Ok(Self { method, path, headers })
    }

    pub(super) fn headers(&self) -> Vec<ext::Header> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let header = |(name, value): &(HeaderName, HeaderValue)| ext::Header {
            name: name.to_string(),
            value: text(value),
        };
        self.headers.iter().map(header).collect()
    }
}

fn header_of(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once([':', '='])
        .ok_or_else(|| format!("\"{text}\" is not a header; write NAME:VALUE"))?;
    let name = name.trim().parse().map_err(|_| format!("\"{name}\" can't name a header"))?;
    let value = value.trim().parse().map_err(|_| format!("\"{value}\" can't be in a header"))?;
    Ok((name, value))
}

/// Words as a shell has them, with quotes and without anything else.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_curl_has_them() {
        let asked =
            Asked::parse("post /cart?a=1 -H x-beta:1 -H 'x-user: \"a b\"' -Hx-c=2").unwrap();
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/cart?a=1"));
        let headers: Vec<_> =
            asked.headers().into_iter().map(|header| (header.name, header.value)).collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers, [pair("x-beta", "1"), pair("x-user", "\"a b\""), pair("x-c", "2")]);
        assert_eq!(Asked::parse("/cart").unwrap().method, Method::GET);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in
            ["", "GET", "GET cart", "GET /a b", "GET /a -H", "GET /a -H x", "G@T /", "GET '/"]
        {
            assert!(Asked::parse(bad).is_err(), "{bad}");
        }
    }
}
