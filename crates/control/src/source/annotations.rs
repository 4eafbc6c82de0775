//! The annotations `config.meshctl.dev/*` of namespaces, services and pods.
//!
//! A wrong one never keeps its object out of force: it is reported and the default applies.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use mesh_model::authz::DefaultAccess;
use mesh_model::outbound::{Breaker, Strategy, SuccessRate};

use super::Finding;
use crate::index::object::{Balancer, PortSet};
use crate::index::policy::DEFAULT_BREAKER;

pub const PREFIX: &str = "config.meshctl.dev/";

const OPAQUE_PORTS: &str = "opaque-ports";
const DEFAULT_ACCESS: &str = "default-inbound-policy";
const BALANCER: &str = "load-balancer";
const HASH_HEADER: &str = "load-balancer-hash-header";
const ACCRUAL: &str = "failure-accrual";
const MAX_FAILURES: &str = "failure-accrual-consecutive-max-failures";
const MIN_PENALTY: &str = "failure-accrual-min-penalty";
const MAX_PENALTY: &str = "failure-accrual-max-penalty";
const JITTER: &str = "failure-accrual-jitter-ratio";
const THRESHOLD: &str = "failure-accrual-success-rate-threshold";
const WINDOW: &str = "failure-accrual-success-rate-decay";
const MIN_REQUESTS: &str = "failure-accrual-success-rate-min-requests";
const ALLOW_REQUEST_HEADERS: &str = "allow-request-headers";
const MIN_READY: &str = "failure-accrual-min-ready-endpoints";

const KNOWN: [&str; 14] = [
    ALLOW_REQUEST_HEADERS,
    OPAQUE_PORTS,
    DEFAULT_ACCESS,
    BALANCER,
    HASH_HEADER,
    ACCRUAL,
    MAX_FAILURES,
    MIN_PENALTY,
    MAX_PENALTY,
    JITTER,
    THRESHOLD,
    WINDOW,
    MIN_REQUESTS,
    MIN_READY,
];

/// The annotations of one object, and what was found wrong with them so far.
#[derive(Debug)]
pub struct Annotations<'a> {
    all: Option<&'a BTreeMap<String, String>>,
    pub findings: Vec<Finding>,
}

impl<'a> Annotations<'a> {
    pub fn new(all: Option<&'a BTreeMap<String, String>>) -> Self {
        let unknown = all.into_iter().flatten().filter_map(|(key, _)| {
            let name = key.strip_prefix(PREFIX)?;
            (!known().any(|known| known == name)).then(|| {
                let nearest = nearest_name(name, known());
                Finding::warning(
                    field(name),
                    format!("no such annotation; the nearest is {PREFIX}{nearest}"),
                )
            })
        });
        Self { findings: unknown.collect(), all }
    }

    /// `3306,5432,9000-9010`
    pub fn opaque_ports(&mut self) -> Option<PortSet> {
        self.parsed(OPAQUE_PORTS, "ports and ranges such as `3306,9000-9010`", |text| {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            let ranges = items.map(|item| {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                let (first, last) = (port(first)?, port(last)?);
                (first <= last).then_some(first..=last)
            });
            let mut ranges: Vec<_> = ranges.collect::<Option<_>>()?;
            ranges.sort_by_key(|range| (*range.start(), *range.end()));
            Some(PortSet(ranges))
        })
    }

    /// Who may use ports about which no policy says anything. A wrong value denies: whoever wrote
    /// one wanted less than everything.
    pub fn default_access(&mut self) -> Option<DefaultAccess> {
        let text = self.all?.get(&format!("{PREFIX}{DEFAULT_ACCESS}"))?;
        let access = DefaultAccess::from_name(text.trim());
        if access.is_none() {
            let names = DefaultAccess::ALL.map(DefaultAccess::as_str).join(", ");
            let message = format!("`{text}` is not one of {names}; until it is, `deny` applies");
            self.findings.push(Finding::warning(field(DEFAULT_ACCESS), message));
        }
        Some(access.unwrap_or(DefaultAccess::Deny))
    }

    /// `peak-ewma`, `least-request`, `round-robin` or `ring-hash`, and the header to hash.
    pub fn balancer(&mut self) -> Balancer {
        let wanted = "one of peak-ewma, least-request, round-robin, ring-hash";
        let strategy = self.parsed(BALANCER, wanted, |text| {
            [Strategy::PeakEwma, Strategy::LeastRequest, Strategy::RoundRobin, Strategy::RingHash]
                .into_iter()
                .find(|strategy| strategy.as_str() == text)
        });
        let strategy = strategy.unwrap_or_default();
        let hash_header = self
            .parsed(HASH_HEADER, "the name of a header", |text| HeaderName::from_str(text).ok());
        if hash_header.is_some() && strategy != Strategy::RingHash {
            self.findings.push(Finding::warning(
                field(HASH_HEADER),
                format!("has no effect unless {PREFIX}{BALANCER} is ring-hash"),
            ));
        }
        let hash_header = hash_header.filter(|_| strategy == Strategy::RingHash);
        Balancer { strategy, hash_header }
    }

    /// Whether requests may set timeouts and retries themselves.
    pub fn allow_request_headers(&mut self) -> bool {
        self.parsed(ALLOW_REQUEST_HEADERS, "`true` or `false`", |text| text.parse().ok())
            .unwrap_or_default()
    }

    /// The circuit breaker: `None` is the default, `Some(None)` is none.
    pub fn breaker(&mut self) -> Option<Option<Breaker>> {
        let mode = self.parsed(ACCRUAL, "one of consecutive, success-rate, off", |text| {
            Mode::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, mode)| mode)
        });
        let count = "a whole number from 1";
        let failures = self.parsed(MAX_FAILURES, count, positive);
        let min = self.parsed(MIN_PENALTY, DURATION, duration);
        let max = self.parsed(MAX_PENALTY, DURATION, duration);
        let jitter = self.parsed(JITTER, "a number from 0 to 100", |text| {
            text.parse::<f32>().ok().filter(|jitter| (0.0..=100.0).contains(jitter))
        });
        let threshold = self.parsed(THRESHOLD, "a number above 0 and at most 1", |text| {
            text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0)
        });
        let decay = self.parsed(WINDOW, DURATION, duration);
        let min_requests = self.parsed(MIN_REQUESTS, count, positive);
        let min_ready = self.parsed(MIN_READY, "a whole number", |text| text.parse::<u32>().ok());
        if mode == Some(Mode::Off) {
            return Some(None);
        }

        let mut breaker = DEFAULT_BREAKER;
        if mode == Some(Mode::SuccessRate) {
            breaker.consecutive = failures;
            breaker.success_rate = Some(SuccessRate {
                threshold: threshold.unwrap_or(0.8),
                decay: decay.unwrap_or(Duration::from_secs(10)),
                min_requests: min_requests.unwrap_or(5),
            });
        } else if failures.is_some() {
            breaker.consecutive = failures;
        }
        breaker.backoff.min = min.unwrap_or(breaker.backoff.min);
        breaker.backoff.max = max.unwrap_or(breaker.backoff.max);
        breaker.backoff.jitter = jitter.unwrap_or(breaker.backoff.jitter);
        breaker.min_ready = min_ready.unwrap_or(breaker.min_ready);
        if breaker.backoff.min > breaker.backoff.max {
            self.findings.push(Finding::warning(
                field(MAX_PENALTY),
                "is shorter than the shortest penalty; the default penalties apply",
            ));
            breaker.backoff.min = DEFAULT_BREAKER.backoff.min;
            breaker.backoff.max = DEFAULT_BREAKER.backoff.max;
        }
        (breaker != DEFAULT_BREAKER).then_some(Some(breaker))
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.all?.get(&format!("{PREFIX}{name}"))?;
        let parsed = parse(text.trim());
        if parsed.is_none() {
            let message = format!("`{text}` is not {wanted}; the default applies");
            self.findings.push(Finding::warning(field(name), message));
        }
        parsed
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Consecutive,
    SuccessRate,
    Off,
}

impl Mode {
    const ALL: [(&'static str, Self); 3] = [
        ("consecutive", Self::Consecutive),
        ("success-rate", Self::SuccessRate),
        ("off", Self::Off),
    ];
}

const DURATION: &str = "a duration such as `500ms` or `1m`";

fn field(name: &str) -> String {
    format!("metadata.annotations[{PREFIX}{name}]")
}

fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|port| *port > 0)
}

fn positive(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number > 0)
}

/// A Gateway API duration above zero.
fn duration(text: &str) -> Option<Duration> {
    let parsed = gateway_api::Duration::from_str(text).ok()?;
    let millis = u64::try_from(parsed.as_millis()).ok()?;
    Some(Duration::from_millis(millis)).filter(|duration| !duration.is_zero())
}

/// Whether Services are where this one is read. [`OPAQUE_PORTS`] is read everywhere.
pub(crate) fn is_of_services(name: &str) -> bool {
    name == OPAQUE_PORTS || (KNOWN.contains(&name) && name != DEFAULT_ACCESS)
}

/// Whether pods and namespaces are.
pub(crate) fn is_of_pods(name: &str) -> bool {
    [OPAQUE_PORTS, DEFAULT_ACCESS].contains(&name)
        || crate::inject::options::names().any(|known| known == name)
}

/// All annotations there are: the injector reads some of those of pods and namespaces.
pub(crate) fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().chain(crate::inject::options::names())
}

/// Of these names the one with the fewest letters to change.
pub(crate) fn nearest_name(name: &str, known: impl Iterator<Item = &'static str>) -> &'static str {
    known.min_by_key(|known| distance(known, name)).unwrap_or(OPAQUE_PORTS)
}

/// Levenshtein distance. Longer names than any real one are cut, so that the work is bounded.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(
        pairs: &[(&str, &str)],
        read: impl FnOnce(&mut Annotations<'_>) -> T,
    ) -> (T, Vec<String>) {
        let all = pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).into()));
        let all: BTreeMap<String, String> = all.collect();
        let mut annotations = Annotations::new(Some(&all));
        let value = read(&mut annotations);
        (value, annotations.findings.into_iter().map(|f| f.message).collect())
    }

    #[test]
    fn ports_and_ranges() {
        let (ports, findings) = with(&[("opaque-ports", "9000-9010, 3306,")], |a| a.opaque_ports());
        assert_eq!(ports, Some(PortSet(vec![3306..=3306, 9000..=9010])));
        assert!(findings.is_empty());
        for wrong in ["0", "70000", "9-8", "mysql", "1-2-3"] {
            let (ports, findings) = with(&[("opaque-ports", wrong)], |a| a.opaque_ports());
            assert_eq!((ports, findings.len()), (None, 1), "{wrong}");
        }
        let (none, _) = with(&[("opaque-ports", "")], |a| a.opaque_ports());
        assert_eq!(none, Some(PortSet::default()), "empty overrides the defaults");
    }

    #[test]
    fn request_headers_are_ignored_unless_they_are_allowed() {
        let allowed = |text| {
            let (allowed, findings) =
                with(&[("allow-request-headers", text)], |a| a.allow_request_headers());
            (allowed, findings.len())
        };
        assert!(!with(&[], |a| a.allow_request_headers()).0);
        assert_eq!(allowed("true"), (true, 0));
        assert_eq!(allowed("false"), (false, 0));
        assert_eq!(allowed("yes"), (false, 1));
    }

    #[test]
    fn a_breaker_is_the_default_with_changes() {
        assert_eq!(with(&[], |a| a.breaker()), (None, vec![]));
        assert_eq!(with(&[("failure-accrual", "off")], |a| a.breaker()).0, Some(None));
        let (breaker, _) = with(
            &[
                ("failure-accrual-consecutive-max-failures", "3"),
                ("failure-accrual-max-penalty", "10s"),
            ],
            |a| a.breaker(),
        );
        let breaker = breaker.flatten().unwrap();
        assert_eq!(breaker.consecutive, Some(3));
        assert_eq!(breaker.backoff.max, Duration::from_secs(10));
        let (breaker, _) = with(&[("failure-accrual", "success-rate")], |a| a.breaker());
        let breaker = breaker.flatten().unwrap();
        assert_eq!(breaker.success_rate.unwrap().min_requests, 5);
        assert_eq!(breaker.consecutive, None);
    }

    #[test]
    fn penalties_the_wrong_way_round_are_refused() {
        let (breaker, findings) = with(&[("failure-accrual-min-penalty", "2m")], |a| a.breaker());
        assert_eq!(breaker, None);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn wrong_and_misspelt_ones_are_reported() {
        let (balancer, findings) = with(&[("load-balancer", "random")], |a| a.balancer());
        assert_eq!(balancer, Balancer::default());
        assert!(findings[0].contains("`random` is not one of peak-ewma"), "{findings:?}");
        let ((), findings) = with(&[("oqaque-port", "1")], |_| ());
        assert!(findings[0].contains("config.meshctl.dev/opaque-ports"), "{findings:?}");
    }

    #[test]
    fn a_default_that_is_none_denies() {
        let read = |text| with(&[("default-inbound-policy", text)], |a| a.default_access());
        assert_eq!(
            read("cluster-authenticated"),
            (Some(DefaultAccess::ClusterAuthenticated), vec![])
        );
        let (access, findings) = read("all-authenticate");
        assert_eq!((access, findings.len()), (Some(DefaultAccess::Deny), 1));
        assert_eq!(with(&[], |a| a.default_access()), (None, vec![]));
    }

    #[test]
    fn the_hash_header_belongs_to_ring_hash() {
        let header = ("load-balancer-hash-header", "x-user");
        let (balancer, findings) =
            with(&[("load-balancer", "ring-hash"), header], |a| a.balancer());
        assert_eq!(balancer.hash_header.unwrap(), "x-user");
        assert!(findings.is_empty());
        let (balancer, findings) = with(&[header], |a| a.balancer());
        assert_eq!((balancer.hash_header, findings.len()), (None, 1));
    }
}
