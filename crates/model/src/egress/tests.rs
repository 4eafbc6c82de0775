use proptest::prelude::*;

use super::*;

fn rule(action: EgressAction, hosts: &[&str], networks: &[&str], ports: &[u16]) -> EgressRule {
    let network = |net: &&str| Network { net: net.parse().unwrap(), except: Vec::new() };
    EgressRule {
        meta: Meta::Default(format!("{} {hosts:?} {networks:?} {ports:?}", action.as_str())),
        action,
        hosts: hosts.iter().map(|host| HostMatch::parse(host).unwrap()).collect(),
        networks: networks.iter().map(network).collect(),
        ports: ports.to_vec(),
    }
}

fn rules(default: EgressAction, rules: impl IntoIterator<Item = EgressRule>) -> EgressRules {
    let meta = Meta::Default("default".into());
    EgressRules {
        rules: rules.into_iter().collect(),
        default: EgressDefault { action: default, meta },
    }
}

fn allowed(rules: &EgressRules, names: &[&str], to: &str) -> bool {
    let names: Vec<_> = names.iter().filter_map(|name| HostName::new(name)).collect();
    let to: std::net::SocketAddr = to.parse().unwrap();
    rules.decide(Departure { names: &names, ip: Some(to.ip()), port: to.port() }).allowed
}

use EgressAction::{Allow, Deny};

#[test]
fn without_policy_everything_may_leave() {
    let none = EgressRules::default();
    assert!(allowed(&none, &["example.com"], "192.0.2.1:443"));
    assert!(allowed(&none, &[], "192.0.2.1:22"));
}

#[test]
fn a_rule_by_host_says_nothing_of_bytes_that_name_none() {
    let rules = rules(Deny, [rule(Allow, &["example.com", "*.example.org"], &[], &[])]);
    for (names, expected) in [
        (&["example.com"][..], true),
        (&["EXAMPLE.com."], true),
        (&["a.example.org"], true),
        (&["b.a.example.org"], true),
        (&["example.org"], false),
        (&["badexample.org"], false),
        (&["example.com.evil.test"], false),
        (&[], false),
        // Malformed, so that it is no name.
        (&["example.com\0"], false),
        (&["example..com"], false),
    ] {
        assert_eq!(allowed(&rules, names, "192.0.2.1:443"), expected, "{names:?}");
    }
}

#[test]
fn every_name_must_be_allowed() {
    let rules = rules(Deny, [rule(Allow, &["a.test", "b.test"], &[], &[])]);
    assert!(allowed(&rules, &["a.test", "b.test"], "192.0.2.1:443"));
    assert!(!allowed(&rules, &["a.test", "c.test"], "192.0.2.1:443"));
    assert!(!allowed(&rules, &["c.test", "a.test"], "192.0.2.1:443"));
}

#[test]
fn all_conditions_of_a_rule_hold_together() {
    let rules = rules(Deny, [rule(Allow, &["a.test"], &["192.0.2.0/24"], &[443])]);
    assert!(allowed(&rules, &["a.test"], "192.0.2.1:443"));
    assert!(!allowed(&rules, &["a.test"], "192.0.2.1:80"));
    assert!(!allowed(&rules, &["a.test"], "198.51.100.1:443"), "a name alone is a claim");
    assert!(!allowed(&rules, &[], "192.0.2.1:443"));
}

#[test]
fn bytes_are_known_by_address() {
    let rules = rules(
        Deny,
        [rule(Allow, &[], &["192.0.2.0/24"], &[5432]), rule(Deny, &[], &["192.0.2.9/32"], &[])],
    );
    assert!(allowed(&rules, &[], "192.0.2.1:5432"));
    assert!(allowed(&rules, &[], "[::ffff:192.0.2.1]:5432"));
    assert!(!allowed(&rules, &[], "192.0.2.1:22"));
    assert!(!allowed(&rules, &[], "192.0.2.9:5432"), "denied goes first");
}

#[test]
fn the_verdict_names_what_decided() {
    let by_host = rule(Deny, &["a.test"], &[], &[]);
    let rules = rules(Allow, [by_host.clone()]);
    let names = ["x.test", "a.test"].map(|name| HostName::new(name).unwrap());
    let verdict = rules.decide(Departure { names: &names, ip: None, port: 80 });
    assert_eq!(verdict, EgressVerdict { allowed: false, by: &by_host.meta });
    let verdict = rules.decide(Departure { names: &names[..1], ip: None, port: 80 });
    assert_eq!(verdict, EgressVerdict { allowed: true, by: &rules.default.meta });
}

#[test]
fn addresses_are_no_names() {
    for text in
        ["192.0.2.1", "[::1]", "::1", "127.1", "0x7f.1", "2130706433", "0x7f000001", "", "."]
    {
        assert_eq!(HostName::new(text), None, "{text}");
    }
    assert_eq!(HostName::new("A.Example.").unwrap().as_str(), "a.example");
}

#[test]
fn hosts_are_found_in_figures() {
    let meta = egress_meta("example.com", Some(443)).to_string();
    assert_eq!(meta, "Egress/example.com:443");
    assert_eq!(egress_host(&meta), Some("example.com"));
    assert_eq!(egress_host(&egress_meta("other", None).to_string()), Some("other"));
    assert_eq!(
        egress_host(&egress_meta("2001:db8::1", Some(443)).to_string()),
        Some("2001:db8::1")
    );
    assert_eq!(egress_host("Service/shop/tax:80"), None);
}

#[test]
fn a_wider_rule_covers_a_narrower_one() {
    let of = |hosts: &[&str], ports: &[u16]| rule(Deny, hosts, &[], ports);
    assert!(of(&["*.a.test"], &[]).covers(&of(&["x.a.test", "*.b.a.test"], &[443])));
    assert!(of(&[], &[443]).covers(&of(&["x.a.test"], &[443])));
    assert!(!of(&["*.a.test"], &[]).covers(&of(&["x.a.test", "a.test"], &[])));
    assert!(!of(&["a.test"], &[443]).covers(&of(&["a.test"], &[])));
    assert!(!of(&["a.test"], &[]).covers(&of(&[], &[])));
}

fn any_rule() -> impl Strategy<Value = EgressRule> {
    let hosts = ["a.test", "*.a.test", "b.test", "*.test"];
    let networks = ["192.0.2.0/24", "192.0.2.1/32", "198.51.100.0/24"];
    let some = |of: usize| proptest::sample::subsequence((0..of).collect::<Vec<_>>(), 0..=of);
    (any::<bool>(), some(4), some(3), some(2)).prop_map(move |(deny, h, n, p)| {
        let hosts: Vec<&str> = h.into_iter().map(|at| hosts[at]).collect();
        let networks: Vec<&str> = n.into_iter().map(|at| networks[at]).collect();
        let ports: Vec<u16> = p.into_iter().map(|at| [80, 443][at]).collect();
        rule(if deny { Deny } else { Allow }, &hosts, &networks, &ports)
    })
}

fn any_departure() -> impl Strategy<Value = (Vec<HostName>, IpAddr, u16)> {
    let name = prop_oneof![Just("a.test"), Just("x.a.test"), Just("b.test"), Just("c.other")];
    let name = name.prop_map(|name| HostName::new(name).unwrap());
    let ip = prop_oneof![Just("192.0.2.1"), Just("192.0.2.2"), Just("198.51.100.7")];
    let port = prop_oneof![Just(80), Just(443), Just(5432)];
    (proptest::collection::vec(name, 0..3), ip.prop_map(|ip| ip.parse().unwrap()), port)
}

proptest! {
    /// The words of the documentation, the long way.
    #[test]
    fn denied_goes_before_allowed_and_the_default_is_last(
        all in proptest::collection::vec(any_rule(), 0..6),
        open in any::<bool>(),
        (names, ip, port) in any_departure(),
    ) {
        let default = if open { Allow } else { Deny };
        let decided = rules(default, all.clone());
        let one = |name: Option<&HostName>| {
            let is = |rule: &&EgressRule| {
                let hosts = rule.hosts.iter().map(ToString::to_string);
                let named = |host: String| name.is_some_and(|name| match host.strip_prefix('*') {
                    Some(end) => name.as_str().ends_with(end) && name.as_str().len() > end.len(),
                    None => name.as_str() == host,
                });
                (rule.hosts.is_empty() || hosts.into_iter().any(named))
                    && (rule.networks.is_empty() || rule.networks.iter().any(|n| n.contains(ip)))
                    && (rule.ports.is_empty() || rule.ports.contains(&port))
            };
            let matching: Vec<_> = all.iter().filter(is).collect();
            if matching.iter().any(|rule| rule.action == Deny) {
                return false;
            }
            matching.iter().any(|rule| rule.action == Allow) || open
        };
        let expected = match names.as_slice() {
            [] => one(None),
            names => names.iter().all(|name| one(Some(name))),
        };
        let what = Departure { names: &names, ip: Some(ip), port };
        prop_assert_eq!(decided.decide(what).allowed, expected);
    }

    #[test]
    fn what_a_rule_covers_it_matches(
        wide in any_rule(), narrow in any_rule(), (names, ip, port) in any_departure(),
    ) {
        let what = Departure { names: &names, ip: Some(ip), port };
        let matches = |rule: &EgressRule| rule.is_about(what.ip, what.port) && rule.names(names.first());
        if wide.covers(&narrow) && matches(&narrow) {
            prop_assert!(matches(&wide));
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,300}") {
        HostName::new(&text);
        egress_host(&text);
    }
}
