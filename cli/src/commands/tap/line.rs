//! One request as one line.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::Tapped;

use super::event::{Side, std_duration};
use crate::output::table::Tone;
use crate::output::{Style, clean};
use crate::units;

/// `12:00:01.123 in  web-1 → books:7001  GET /authors/7  200  12.4ms  1.5KiB  tls`
pub(super) fn line(tapped: &Tapped, wide: bool, zone: &TimeZone, style: Style) -> String {
    let event = tapped.event.clone().unwrap_or_default();
    let source = Side::source(tapped, &event);
    let destination = Side::destination(tapped, &event);
    let head = format!(
        "{} {:<3} {} → {}",
        style.dim(&clock(event.started_unix_ms, zone)),
        direction(&event),
        source.short(),
        destination.with_port(),
    );
    let duration = event.duration.as_ref().map(std_duration);
    let mut parts = vec![
        head,
        request(&event),
        status(&event, style),
        duration.map_or_else(|| "-".to_owned(), units::latency),
        units::bytes(event.response_bytes as f64),
        (if event.tls.is_empty() { "plain" } else { "tls" }).to_owned(),
    ];
    if wide {
        parts.extend(details(tapped, &event));
    }
    format!("{}\n", parts.join("  "))
}

pub(crate) fn clock(unix_ms: u64, zone: &TimeZone) -> String {
    let known = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match known {
        Some(time) => time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
        None => "-".to_owned(),
    }
}

pub(crate) fn direction(event: &ext::TapEvent) -> &'static str {
    match event.direction() {
        ext::Direction::Inbound => "in",
        ext::Direction::Outbound => "out",
        ext::Direction::Unspecified => "-",
    }
}

pub(crate) fn request(event: &ext::TapEvent) -> String {
    if event.method.is_empty() {
        return "TCP".to_owned();
    }
    clean(&format!("{} {}", event.method, event.path)).into_owned()
}

/// `200`, `503 no-endpoints`, `200 grpc-14`, `connect-refused`, or `-` for a connection that just ended.
fn status(event: &ext::TapEvent, style: Style) -> String {
    let mut parts = Vec::new();
    if event.status > 0 {
        parts.push(event.status.to_string());
    }
    parts.extend(event.grpc_status.map(|code| format!("grpc-{code}")));
    if !event.reason.is_empty() {
        parts.push(clean(&event.reason).into_owned());
    }
    if parts.is_empty() {
        return "-".to_owned();
    }
    tone(event).paint(style, &parts.join(" "))
}

fn tone(event: &ext::TapEvent) -> Tone {
    match (event.status, event.grpc_status) {
        _ if !super::event::succeeded(event) => Tone::Bad,
        (400..500, _) | (_, Some(1..)) => Tone::Warn,
        _ => Tone::Good,
    }
}

/// What the wide line adds, `name=value`.
fn details(tapped: &Tapped, event: &ext::TapEvent) -> Vec<String> {
    let first_byte =
        event.first_byte.as_ref().map(std_duration).map(units::latency).unwrap_or_default();
    let fields = [
        ("proxy", format!("{}/{}", tapped.namespace, tapped.pod)),
        ("id", event.id.to_string()),
        ("authority", event.authority.clone()),
        ("parent", event.parent.clone()),
        ("route", event.route.clone()),
        ("backend", event.backend.clone()),
        ("attempts", event.attempts.to_string()),
        ("first_byte", first_byte),
        ("request", units::bytes(event.request_bytes as f64)),
        ("identity", event.tls.clone()),
        ("policy", event.policy.clone()),
    ];
    let known = fields.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(name, value)| format!("{name}={}", clean(&value))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::commands::tap::tests::sample;

    fn show(tapped: &Tapped, wide: bool) -> String {
        line(tapped, wide, &TimeZone::UTC, Style::default())
    }

    #[test]
    fn the_default_line_is_as_documented() {
        assert_eq!(
            show(&sample(), false),
            "12:00:01.123 in  web-1 → books:7001  GET /authors/7  200  12.4ms  1.5KiB  tls\n"
        );
    }

    #[test]
    fn the_wide_line_tells_the_decisions() {
        assert_eq!(
            show(&sample(), true),
            "12:00:01.123 in  web-1 → books:7001  GET /authors/7  200  12.4ms  1.5KiB  tls  proxy=shop/books  id=7  \
             authority=books:7001  route=HTTPRoute/shop/books  attempts=1  first_byte=10.0ms  request=0B  \
             identity=web.shop  policy=AuthorizationPolicy/shop/books\n"
        );
    }

    #[test]
    fn failures_of_the_mesh_name_their_reason_and_what_was_asked_for() {
        let mut tapped = sample();
        tapped.destination = None;
        let event = tapped.event.as_mut().unwrap();
        event.direction = ext::Direction::Outbound.into();
        event.destination = String::new();
        event.parent = "Service/shop/tax:8080".into();
        event.status = 503;
        event.reason = "no-endpoints".into();
        event.tls = String::new();
        event.response_bytes = 0;
        assert_eq!(
            show(&tapped, false),
            "12:00:01.123 out web-1 → tax:8080  GET /authors/7  503 no-endpoints  12.4ms  0B  plain\n"
        );
    }

    #[test]
    fn connections_and_hostile_paths_stay_on_one_line() {
        let mut tapped = sample();
        let event = tapped.event.as_mut().unwrap();
        event.path = "/\x1b[2J\n".into();
        assert!(show(&tapped, false).contains("GET /\\u{1b}[2J\\n  200"));
        let event = tapped.event.as_mut().unwrap();
        (event.method, event.status) = (String::new(), 0);
        event.duration = Some(Duration::from_secs(61).try_into().unwrap());
        assert!(
            show(&tapped, false).contains("books:7001  TCP  -  1m1s"),
            "{}",
            show(&tapped, false)
        );
    }
}
