//! Where the nodes of a YAML document stand in its text.

use std::ops::Range;

use granit_parser::{Event, Parser, Span, StructureStyle};

/// No object of Kubernetes nests deeper; bounds the stack.
const MAX_DEPTH: usize = 64;

/// A node and its place, in bytes.
#[derive(Debug)]
pub(super) struct Node {
    pub kind: Kind,
    pub start: usize,
    /// Behind its last character, without the blanks and comments that may follow.
    pub end: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    Scalar(String),
    /// Another node's content, which stands elsewhere.
    Alias,
    Map {
        flow: bool,
        entries: Vec<Entry>,
    },
    List {
        flow: bool,
        items: Vec<Node>,
    },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub key_place: Range<usize>,
    pub value: Node,
}

impl Entry {
    /// Behind its value, or its key when there is none.
    pub(super) fn end(&self) -> usize {
        self.key_place.end.max(self.value.end)
    }
}

impl Node {
    /// The root of the first document.
    ///
    /// # Errors
    /// When it is not YAML, or nests too deep.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { parser: Parser::new_from_str(text), text };
        loop {
            match reader.next()? {
                (Event::StreamStart | Event::DocumentStart(..), _) => {}
                (event, span) => return reader.node(event, span, 0),
            }
        }
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map { entries, .. } => entries.iter().find(|entry| entry.key == name),
            _ => None,
        }
    }

    /// The node below, by names and numbers.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::List { items, .. } => items.get(name.parse::<usize>().ok()?),
            _ => self.entry(name).map(|entry| &entry.value),
        }
    }

    pub(super) fn is_text(&self, text: &str) -> bool {
        matches!(&self.kind, Kind::Scalar(own) if own == text)
    }
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        loop {
            match self.parser.next() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(next)) => return Ok(next),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the document ends too early".to_owned()),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err("it nests too deep".to_owned());
        }
        let place = span.byte_range().ok_or("a node has no place")?;
        let start = place.start;
        match event {
            Event::Scalar(text, ..) => {
                let kind = Kind::Scalar(text.into_owned());
                Ok(Node { kind, start, end: self.trimmed(&place) })
            }
            Event::Alias(_) => Ok(Node { kind: Kind::Alias, start, end: place.end }),
            Event::SequenceStart(style, ..) => {
                let (flow, mut items) = (style == StructureStyle::Flow, Vec::new());
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        let last = items.last().map_or(place.end, |item: &Node| item.end);
                        let end = if flow { end_of(&span)? } else { last };
                        return Ok(Node { kind: Kind::List { flow, items }, start, end });
                    }
                    items.push(self.node(event, span, depth + 1)?);
                }
            }
            Event::MappingStart(style, ..) => {
                let (flow, mut entries) = (style == StructureStyle::Flow, Vec::new());
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::MappingEnd {
                        let last = entries.last().map_or(place.end, Entry::end);
                        let end = if flow { end_of(&span)? } else { last };
                        return Ok(Node { kind: Kind::Map { flow, entries }, start, end });
                    }
                    let key = self.node(event, span, depth + 1)?;
                    let (event, span) = self.next()?;
                    let value = self.node(event, span, depth + 1)?;
                    let key_place = key.start..key.end;
                    let key = match key.kind {
                        Kind::Scalar(text) => text,
                        _ => String::new(),
                    };
                    entries.push(Entry { key, key_place, value });
                }
            }
            _ => Err("a node is missing".to_owned()),
        }
    }

    /// Without the line ends that block scalars take in. An absent value has no place of its own.
    fn trimmed(&self, place: &Range<usize>) -> usize {
        let text = self.text.get(place.clone()).unwrap_or_default();
        if text.is_empty() { 0 } else { place.start + text.trim_end().len() }
    }
}

fn end_of(span: &Span) -> Result<usize, String> {
    span.byte_range().map(|place| place.end).ok_or_else(|| "a node has no place".to_owned())
}

/// Where the line begins that this place is in.
pub(super) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Behind the newline of the line that this place is in; the end of the text if it has none.
pub(super) fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1)
}

/// How far the place is indented, if nothing but blanks stand before it.
pub(super) fn indent(text: &str, at: usize) -> Option<usize> {
    let before = &text[line_start(text, at)..at];
    before.bytes().all(|byte| byte == b' ').then_some(before.len())
}

/// Where the dash of a list's item is, if nothing but blanks stand before it on its line.
pub(super) fn dash_indent(text: &str, item: usize) -> Option<usize> {
    let start = line_start(text, item);
    let line = &text[start..item];
    let blanks = line.len() - line.trim_start_matches(' ').len();
    line[blanks..].strip_prefix('-')?.bytes().all(|byte| byte == b' ').then_some(blanks)
}
