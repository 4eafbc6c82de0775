//! Rules of what may leave come back as they were, and nothing that is missing or unknown makes one
//! wider.

use mesh_api::{Wire, ext};
use mesh_model::egress::{EgressAction, EgressDefault, EgressRule, EgressRules};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

use crate::strategies::{host, meta, network};
use crate::{hostile, round_trip};

fn action() -> impl Strategy<Value = EgressAction> {
    select(EgressAction::ALL.to_vec())
}

fn rules() -> impl Strategy<Value = EgressRules> {
    let rule = (meta(), action(), vec(host(), 0..3), vec(network(), 0..3), vec(any::<u16>(), 0..3))
        .prop_map(|(meta, action, hosts, networks, ports)| EgressRule {
            meta,
            action,
            hosts,
            networks,
            ports,
        });
    let default = (action(), meta()).prop_map(|(action, meta)| EgressDefault { action, meta });
    (vec(rule, 0..4), default)
        .prop_map(|(rules, default)| EgressRules { rules: rules.into(), default })
}

proptest! {
    #[test]
    fn rules_come_back(rules in rules()) {
        round_trip::comes_back(&rules)?;
    }

    #[test]
    fn no_message_panics(rules in rules(), edits in hostile::edits()) {
        let bytes = rules.to_proto().unwrap().encode_to_vec();
        hostile::survives::<EgressRules>(&hostile::spoil(bytes, &edits));
    }
}

#[test]
fn what_is_missing_or_unknown_is_an_error() {
    let good = EgressRules::default().to_proto().unwrap();
    assert!(EgressRules::from_proto(good.clone()).is_ok());
    let meta = good.default_meta.clone();
    let rule = ext::EgressRule { meta, action: 2, ..ext::EgressRule::default() };
    let with = |rule| ext::EgressRules { rules: vec![rule], ..good.clone() };
    assert!(EgressRules::from_proto(with(rule.clone())).is_ok());
    let network = ext::SourceNetwork { net: "10.0.0.0/33".into(), except: Vec::new() };
    for bad in [
        ext::EgressRules { default: 0, ..good.clone() },
        ext::EgressRules { default: 7, ..good.clone() },
        ext::EgressRules { default_meta: None, ..good.clone() },
        with(ext::EgressRule { action: 0, ..rule.clone() }),
        with(ext::EgressRule { action: 3, ..rule.clone() }),
        with(ext::EgressRule { meta: None, ..rule.clone() }),
        with(ext::EgressRule { hosts: vec!["a.*.b".into()], ..rule.clone() }),
        with(ext::EgressRule { networks: vec![network], ..rule.clone() }),
        with(ext::EgressRule { ports: vec![65536], ..rule.clone() }),
    ] {
        assert!(EgressRules::from_proto(bad.clone()).is_err(), "{bad:?}");
    }
}
