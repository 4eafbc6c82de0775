//! Properties of matching: precedence is that of Gateway API, and what people are told is what is done.

#![allow(clippy::unwrap_used)]

use std::cmp::Ordering;

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::meta::Meta;

type Routes = Vec<Route<HttpMatch, ()>>;

/// Few values, so that matches meet.
fn path_match() -> impl Strategy<Value = Option<PathMatch>> {
    const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/b"];
    prop_oneof![
        Just(None),
        select(PATHS).prop_map(|path| Some(PathMatch::Exact(path.into()))),
        select(PATHS).prop_map(|path| Some(PathMatch::Prefix(path.into()))),
        select(&["/a.*", "/.*", "/a/b"][..])
            .prop_map(|regex| Some(PathMatch::Regex(Pattern::new(regex).unwrap()))),
    ]
}

fn value_match() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        select(&["1", "2"][..]).prop_map(|value| ValueMatch::Exact(value.into())),
        Just(ValueMatch::Regex(Pattern::new("[0-9]").unwrap())),
    ]
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let header = (select(&["x-a", "x-b"][..]), value_match());
    let header =
        header.prop_map(|(name, value)| HeaderMatch { name: HeaderName::from_static(name), value });
    let query = (select(&["p", "q"][..]), value_match());
    let query = query.prop_map(|(name, value)| QueryMatch { name: name.into(), value });
    let method = proptest::option::of(select(&[Method::GET, Method::POST][..]));
    let several = 0..3usize;
    (
        path_match(),
        method,
        proptest::collection::vec(header, several.clone()),
        proptest::collection::vec(query, several),
    )
        .prop_map(|(path, method, headers, query)| HttpMatch { path, headers, query, method })
}

fn hosts() -> impl Strategy<Value = Vec<HostMatch>> {
    let host = prop_oneof![
        select(&["a.test", "b.test", "x.a.test"][..]).prop_map(|h| HostMatch::Exact(h.into())),
        Just(HostMatch::Suffix(vec!["test".into()])),
        Just(HostMatch::Suffix(vec!["a".into(), "test".into()])),
    ];
    prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(host, 1..3)]
}

fn routes() -> impl Strategy<Value = Routes> {
    let rule = proptest::collection::vec(http_match(), 0..3).prop_map(|matches| Rule {
        matches,
        filters: Vec::new(),
        action: (),
    });
    let route = (hosts(), proptest::collection::vec(rule, 1..4)).prop_map(|(hosts, rules)| Route {
        meta: Meta::Default("test".into()),
        hosts,
        rules,
    });
    proptest::collection::vec(route, 0..4)
}

fn request() -> impl Strategy<Value = Parts> {
    let value = || proptest::option::of(select(&["1", "2", "3"][..]));
    (
        select(&["a.test", "b.test", "x.a.test", "other"][..]),
        select(&["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b"][..]),
        select(&[Method::GET, Method::POST, Method::PUT][..]),
        (value(), value()),
        (value(), value()),
    )
        .prop_map(|(host, path, method, (a, b), (p, q))| {
            let query: Vec<String> = [("p", p), ("q", q)]
                .into_iter()
                .filter_map(|(name, value)| Some(format!("{name}={}", value?)))
                .collect();
            let uri = format!("http://{host}{path}?{}", query.join("&"));
            let mut request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
            for (name, value) in [("x-a", a), ("x-b", b)] {
                if let Some(value) = value {
                    request.headers_mut().insert(name, HeaderValue::from_static(value));
                }
            }
            request.into_parts().0
        })
}

/// The rule that the words of the specification lead to, written down as they stand there: of hosts
/// that match the longest, an exact one before a wildcard; then `Exact` path match; "Prefix" path
/// match with largest number of characters; method match; largest number of header matches; largest
/// number of query param matches. Where it says nothing, regular expressions come after prefixes,
/// longer first. If ties still exist, the first route, and in it the first rule.
fn by_specification(routes: &Routes, req: &Parts) -> Option<(usize, usize)> {
    let host = request_host(req);
    let mut best: Option<(usize, usize, Option<&HostMatch>, HttpMatch)> = None;
    for (route_index, route) in routes.iter().enumerate() {
        let host = match longest_host(&route.hosts, host) {
            _ if route.hosts.is_empty() => None,
            None => continue,
            host => host,
        };
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let any = vec![HttpMatch::default()];
            let matches = if rule.matches.is_empty() { &any } else { &rule.matches };
            for of in matches.iter().filter(|of| holds(of, req)) {
                let better = match &best {
                    None => true,
                    Some((_, _, best_host, than)) => {
                        compare_hosts(host, *best_host).then_with(|| compare(of, than))
                            == Ordering::Greater
                    }
                };
                if better {
                    best = Some((route_index, rule_index, host, of.clone()));
                }
            }
        }
    }
    best.map(|(route, rule, ..)| (route, rule))
}

fn longest_host<'a>(hosts: &'a [HostMatch], host: &str) -> Option<&'a HostMatch> {
    let fits = |pattern: &&HostMatch| match pattern {
        HostMatch::Exact(exact) => exact == host,
        HostMatch::Suffix(labels) => host.ends_with(&format!(".{}", labels.join("."))),
    };
    hosts.iter().filter(fits).max_by(|a, b| compare_hosts(Some(a), Some(b)))
}

fn compare_hosts(a: Option<&HostMatch>, b: Option<&HostMatch>) -> Ordering {
    let key = |host: Option<&HostMatch>| match host {
        None => (0, 0),
        Some(HostMatch::Suffix(labels)) => (1, labels.join(".").len()),
        Some(HostMatch::Exact(exact)) => (2, exact.len()),
    };
    key(a).cmp(&key(b))
}

fn holds(of: &HttpMatch, req: &Parts) -> bool {
    let path = match &of.path {
        None => true,
        Some(PathMatch::Exact(exact)) => req.uri.path() == exact,
        Some(PathMatch::Prefix(prefix)) => {
            let parts = |path: &str| -> Vec<String> {
                path.trim_end_matches('/').split('/').map(str::to_owned).collect()
            };
            // "/a" is a prefix of "/a/" too: a trailing slash says nothing.
            parts(req.uri.path()).starts_with(&parts(prefix))
        }
        Some(PathMatch::Regex(pattern)) => pattern.matches(req.uri.path().as_bytes()),
    };
    let value = |wanted: &ValueMatch, value: Option<&str>| match (wanted, value) {
        (_, None) => false,
        (ValueMatch::Exact(exact), Some(value)) => exact == value.as_bytes(),
        (ValueMatch::Regex(pattern), Some(value)) => pattern.matches(value.as_bytes()),
    };
    let header = |header: &HeaderMatch| {
        value(&header.value, req.headers.get(&header.name).map(|v| v.to_str().unwrap()))
    };
    let query = |query: &QueryMatch| {
        let pairs = req.uri.query().unwrap_or_default().split('&');
        let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(name, _)| *name == query.name);
        value(&query.value, found.map(|(_, value)| value))
    };
    path && of.method.as_ref().is_none_or(|method| *method == req.method)
        && of.headers.iter().all(header)
        && of.query.iter().all(query)
}

fn compare(a: &HttpMatch, b: &HttpMatch) -> Ordering {
    let exact = |of: &HttpMatch| matches!(of.path, Some(PathMatch::Exact(_)));
    let characters = |of: &HttpMatch| match &of.path {
        // No path means the prefix `/`, of which nothing counts but the slash.
        None => Some(0),
        Some(PathMatch::Prefix(prefix)) => Some(prefix.trim_end_matches('/').len()),
        Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
    };
    let expression = |of: &HttpMatch| match &of.path {
        Some(PathMatch::Regex(pattern)) => pattern.as_str().len(),
        _ => 0,
    };
    exact(a)
        .cmp(&exact(b))
        .then_with(|| characters(a).cmp(&characters(b)))
        .then_with(|| expression(a).cmp(&expression(b)))
        .then_with(|| a.method.is_some().cmp(&b.method.is_some()))
        .then_with(|| a.headers.len().cmp(&b.headers.len()))
        .then_with(|| a.query.len().cmp(&b.query.len()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_rule_found_is_that_of_the_specification(routes in routes(), req in request()) {
        let found = find(&routes, &req).map(|found| (found.route, found.rule));
        prop_assert_eq!(found, by_specification(&routes, &req));
    }

    #[test]
    fn the_candidate_that_wins_is_the_rule_found(routes in routes(), req in request()) {
        let found = find(&routes, &req).map(|found| (found.route, found.rule));
        let all = candidates(&routes, &req);
        let wins: Vec<_> = all.iter().filter(|c| c.outcome == Outcome::Wins).collect();
        prop_assert_eq!(wins.first().map(|c| (c.route, c.rule)), found);
        prop_assert!(wins.len() <= 1);
        let matches = routes.iter().flat_map(|r| &r.rules).map(|rule| rule.matches.len().max(1));
        prop_assert_eq!(all.len(), matches.sum::<usize>());
        // What comes before it does not match.
        let at = all.iter().position(|c| c.outcome == Outcome::Wins).unwrap_or(all.len());
        let missed = |c: &Candidate<'_>| matches!(c.outcome, Outcome::Misses(_));
        prop_assert!(all[..at].iter().all(missed));
    }

    #[test]
    fn what_is_shadowed_or_impossible_never_decides(
        routes in routes(),
        requests in proptest::collection::vec(request(), 32),
    ) {
        let dead = shadowed(&routes);
        for req in &requests {
            let all = candidates(&routes, req);
            for candidate in &all {
                let matched = candidate.matched.unwrap_or(0);
                let at = Position { route: candidate.route, rule: candidate.rule, matched };
                // The rule may win by another of its matches.
                let wins = candidate.outcome == Outcome::Wins;
                prop_assert!(!wins || dead.iter().all(|shadowed| shadowed.at != at));
                let rule = &routes[candidate.route].rules[candidate.rule];
                let of = rule.matches.get(matched);
                prop_assert!(!wins || of.is_none_or(|of| of.impossible().is_none()));
            }
            for Shadowed { at, by } in &dead {
                let outcome = |of: &Position| {
                    let is = |c: &&Candidate<'_>| {
                        (c.route, c.rule, c.matched.unwrap_or(0)) == (of.route, of.rule, of.matched)
                    };
                    all.iter().find(is).map(|candidate| candidate.outcome)
                };
                let misses = |outcome| matches!(outcome, Some(Outcome::Misses(_)));
                prop_assert!(misses(outcome(at)) || !misses(outcome(by)));
            }
        }
    }
}

#[test]
fn a_miss_says_what_did_not_hold() {
    let header = HeaderMatch {
        name: HeaderName::from_static("x-beta"),
        value: ValueMatch::Exact("1".into()),
    };
    let rule = |of: HttpMatch| Rule { matches: vec![of], filters: Vec::new(), action: () };
    let routes = [Route {
        meta: Meta::Default("test".into()),
        hosts: Vec::new(),
        rules: vec![
            rule(HttpMatch { headers: vec![header], ..HttpMatch::default() }),
            rule(HttpMatch { method: Some(Method::POST), ..HttpMatch::default() }),
            rule(HttpMatch {
                path: Some(PathMatch::Prefix("/cart".into())),
                ..HttpMatch::default()
            }),
        ],
    }];
    let (req, ()) = http::Request::get("http://shop/other").body(()).unwrap().into_parts();
    let said: Vec<String> = candidates(&routes, &req)
        .iter()
        .map(|candidate| match candidate.outcome {
            Outcome::Misses(miss) => miss.to_string(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["the path is another", "the method is another", "header x-beta is not 1"]);
}

#[test]
fn what_cannot_be_is_told() {
    let http = |path: &str, values: &[&str]| HttpMatch {
        path: Some(PathMatch::Prefix(path.into())),
        headers: values
            .iter()
            .map(|value| HeaderMatch {
                name: HeaderName::from_static("x-a"),
                value: ValueMatch::Exact((*value).into()),
            })
            .collect(),
        ..HttpMatch::default()
    };
    assert_eq!(http("/a", &["1"]).impossible(), None);
    assert!(http("/a", &["1", "2"]).impossible().unwrap().contains("x-a"));
    assert!(http("a", &[]).impossible().unwrap().contains("slash"));
    assert!(http("/a?b", &[]).impossible().unwrap().contains('?'));
    let grpc = GrpcMatch { service: Some("a/b".into()), ..GrpcMatch::default() };
    assert!(grpc.impossible().is_some());
}

#[test]
fn rules_behind_their_likes_are_shadowed() {
    let rule = |paths: &[PathMatch]| Rule {
        matches: paths
            .iter()
            .map(|path| HttpMatch { path: Some(path.clone()), ..HttpMatch::default() })
            .collect(),
        filters: Vec::new(),
        action: (),
    };
    let prefix = |path: &str| PathMatch::Prefix(path.into());
    let routes = [Route {
        meta: Meta::Default("test".into()),
        hosts: Vec::new(),
        rules: vec![
            rule(&[prefix("/")]),
            rule(&[prefix("/a"), prefix("/")]),
            rule(&[PathMatch::Regex(Pattern::new("/b.*").unwrap())]),
        ],
    }];
    let at = |rule, matched| Position { route: 0, rule, matched };
    assert_eq!(
        shadowed(&routes),
        [
            Shadowed { at: at(1, 1), by: at(0, 0) },
            // A prefix counts for more than an expression, however short it is.
            Shadowed { at: at(2, 0), by: at(0, 0) },
        ]
    );
}
