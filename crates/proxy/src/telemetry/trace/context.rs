//! W3C trace context: which span a request belongs to, and what the request that is passed on says
//! instead (<https://www.w3.org/TR/trace-context/>).

use http::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Bytes of `tracestate` that are exported: what the specification wants to be kept at least. The
/// header itself is passed on whole.
const MAX_STATE: usize = 512;

/// The span a request belongs to. `None` for headers that say nothing or make no sense, which count
/// the same.
pub(super) fn extract(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    // Of two that contradict each other neither counts.
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (trace, span, flags) = parse(value.as_bytes())?;
    // Nobody looks at the state of what is not sampled.
    let state = if flags.is_sampled() { state(headers) } else { TraceState::NONE };
    Some(SpanContext::new(trace, span, flags, true, state))
}

/// Makes a span the parent of what a request will cause. A new trace has nothing to do with the
/// state of whatever came before it.
pub(super) fn inject(headers: &mut HeaderMap, span: &SpanContext, new: bool) {
    let (trace, flags) = (span.trace_id(), span.trace_flags().to_u8());
    let value = format!("00-{trace}-{}-{flags:02x}", span.span_id());
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(TRACEPARENT, value);
    }
    if new {
        headers.remove(TRACESTATE);
    }
}

/// `version-trace-span-flags`, in lowercase hexadecimal. Later versions may only append.
fn parse(value: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (known, more) = value.split_at_checked(55)?;
    let known = std::str::from_utf8(known).ok()?;
    let mut fields = known.split('-');
    let mut field = |length| fields.next().filter(|field| field.len() == length).and_then(number);
    let (version, trace) = (field(2)?, field(32)?);
    let (span, flags) = (u64::try_from(field(16)?).ok()?, u8::try_from(field(2)?).ok()?);
    let whole = match version {
        0 => more.is_empty(),
        0xff => false,
        _ => more.first().is_none_or(|next| *next == b'-'),
    };
    let (trace, span) = (TraceId::from(trace), SpanId::from(span));
    let valid = whole && trace != TraceId::INVALID && span != SpanId::INVALID;
    valid.then(|| (trace, span, TraceFlags::new(flags) & TraceFlags::SAMPLED))
}

/// Stricter than the standard library, which takes signs and capitals.
fn number(field: &str) -> Option<u128> {
    let lowercase = field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    lowercase.then(|| u128::from_str_radix(field, 16).ok()).flatten()
}

fn state(headers: &HeaderMap) -> TraceState {
    let values = headers.get_all(TRACESTATE).iter().map(|value| value.to_str());
    let Ok(values) = values.collect::<Result<Vec<_>, _>>() else { return TraceState::NONE };
    let state = values.join(",");
    if state.len() > MAX_STATE {
        return TraceState::NONE;
    }
    state.parse().unwrap_or(TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    fn of(traceparent: &str) -> Option<SpanContext> {
        extract(&headers(&[(TRACEPARENT, traceparent)]))
    }

    #[test]
    fn a_parent_is_read() {
        let parent = of(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(parent.trace_id().to_string(), TRACE);
        assert_eq!(parent.span_id().to_string(), SPAN);
        assert!(parent.is_sampled());
        assert!(!of(&format!("00-{TRACE}-{SPAN}-02")).unwrap().is_sampled());
        assert!(of(&format!("01-{TRACE}-{SPAN}-01-more")).unwrap().is_sampled());
    }

    #[test]
    fn what_makes_no_sense_is_no_parent() {
        for wrong in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("00-{TRACE}a-{}-01", &SPAN[1..]),
            format!("00_{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
        let twice = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(extract(&headers(&[(TRACEPARENT, &twice), (TRACEPARENT, &twice)])), None);
    }

    #[test]
    fn state_is_kept_within_bounds_and_only_with_its_trace() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let long = format!("a={}", "x".repeat(MAX_STATE));
        for (state, kept) in [("a=1, b=2", "a=1,b=2"), (&long, ""), ("nonsense", "")] {
            let mut headers = headers(&[(TRACEPARENT, &parent), (TRACESTATE, state)]);
            let context = extract(&headers).unwrap();
            assert_eq!(context.trace_state().header(), kept);
            inject(&mut headers, &context, false);
            assert_eq!(headers[TRACESTATE], state);
            inject(&mut headers, &context, true);
            assert!(!headers.contains_key(TRACESTATE));
        }
    }

    /// Mostly what nearly is a trace context.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80),
            "[0-9a-f]{2}-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}(-.{0,4})?"
                .prop_map(String::into_bytes),
            "([a-z0-9_@/*-]{0,9}=?[ -~]{0,9},?){0,40}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn no_header_panics(parent in value(), state in value()) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(TRACEPARENT, parent), (TRACESTATE, state)] {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(name, value);
                }
            }
            let _ = extract(&headers);
        }

        #[test]
        fn what_is_injected_is_extracted(trace in 1u128.., span in 1u64.., sampled: bool) {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            let (trace, span) = (TraceId::from(trace), SpanId::from(span));
            let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
            let mut headers = HeaderMap::new();
            inject(&mut headers, &context, true);
            prop_assert_eq!(extract(&headers), Some(context));
        }
    }
}
