use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use serde_json::json;

use super::keep::bundle_patch;
use super::*;

fn names() -> Vec<String> {
    vec!["mesh-control.mesh-system.svc".into()]
}

#[test]
fn a_pair_is_read_as_it_was_made() {
    let pair = Pair::generate(&names(), None).unwrap();
    let read = Pair::read(pair.authorities.clone(), pair.certificate.clone(), pair.key).unwrap();
    assert_eq!(read.names, names());
    assert!(read.is_good(&names(), SystemTime::now()));
    assert!(!read.is_good(&["elsewhere.svc".into()], SystemTime::now()));
    let life = LIFETIME + CLOCK_SKEW;
    let begin = read.validity.0;
    assert!(read.is_good(&names(), begin + life * 65 / 100));
    assert!(!read.is_good(&names(), begin + life * 67 / 100), "two thirds of its life");
    assert!(!read.is_good(&names(), begin - Duration::from_secs(1)));
}

#[test]
fn the_authority_before_stays_in_the_bundle_and_no_older_one() {
    let first = Pair::generate(&names(), None).unwrap();
    let second = Pair::generate(&names(), Some(&first)).unwrap();
    let third = Pair::generate(&names(), Some(&second)).unwrap();
    let count = |pair: &Pair| certificates("", &pair.authorities).unwrap().len();
    assert_eq!([count(&first), count(&second), count(&third)], [1, 2, 2]);
    let newest = certificates("", &second.authorities).unwrap()[0].clone();
    assert_eq!(certificates("", &third.authorities).unwrap()[1], newest);
}

#[test]
fn damaged_secrets_are_refused() {
    let pair = Pair::generate(&names(), None).unwrap();
    let other = Pair::generate(&names(), None).unwrap();
    let (ca, crt, key) = (pair.authorities, pair.certificate, pair.key);
    for (ca, crt, key) in [
        ("", &*crt, &*key),
        (&*ca, "", &*key),
        (&*ca, &*crt, ""),
        (&*ca, &*crt, &*other.key),
        (&*ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &*key),
    ] {
        assert!(Pair::read(ca.into(), crt.into(), key.into()).is_err());
    }
}

#[test]
fn only_other_bundles_are_patched() {
    let mut configuration: MutatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": "mesh-injector"},
        "webhooks": [
            {"name": "a.meshctl.dev", "clientConfig": {"caBundle": "eA=="}},
            {"name": "b.meshctl.dev", "clientConfig": {}},
        ],
    }))
    .unwrap();
    let patch = serde_json::to_value(bundle_patch(&configuration, "x")).unwrap();
    assert_eq!(
        patch,
        json!([
            {"op": "test", "path": "/webhooks/1/name", "value": "b.meshctl.dev"},
            {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "eA=="},
        ])
    );
    configuration.webhooks = None;
    assert!(bundle_patch(&configuration, "x").is_empty());
}
