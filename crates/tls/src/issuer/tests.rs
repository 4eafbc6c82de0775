use super::*;
use crate::Key;
use proptest::prelude::*;
use rcgen::CustomExtension;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";

fn issuer() -> Issuer {
    let root = Root::generate("test", 365 * DAY, 30 * DAY).unwrap();
    Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap()
}

fn web() -> Id {
    WEB.parse().unwrap()
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(WEB.try_into().unwrap())];
    change(&mut params);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn a_certificate_has_both_names_and_no_more_life_than_asked_for() {
    let issued = issuer().certify(&Key::generate().request(&web()), &web(), DAY).unwrap();
    let leaf = Certificate::read(&issued.leaf).unwrap();
    assert_eq!(leaf.names, [WEB, "spiffe://cluster.local/ns/shop/sa/web"]);
    assert_eq!(leaf.id(), Some(WEB));
    assert!(!leaf.is_ca);
    assert!(leaf.lifetime() <= DAY + CLOCK_SKEW + Duration::from_secs(1), "{leaf:?}");
    assert!(leaf.not_before < SystemTime::now());
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let issuer = issuer();
    let issued = issuer.certify(&Key::generate().request(&web()), &web(), 400 * DAY).unwrap();
    assert_eq!(issued.not_after, issuer.certificate().not_after);
}

#[test]
fn requests_for_more_than_their_identity_are_refused() {
    let other = || SanType::DnsName("bank.shop".try_into().unwrap());
    let uri = || SanType::URI("spiffe://cluster.local/ns/shop/sa/bank".try_into().unwrap());
    for (what, request) in [
        ("another", request(|params| params.subject_alt_names = vec![other()])),
        ("one more", request(|params| params.subject_alt_names.push(other()))),
        ("a URI", request(|params| params.subject_alt_names.push(uri()))),
        ("none", request(|params| params.subject_alt_names.clear())),
    ] {
        let refused = issuer().certify(&request, &web(), DAY);
        assert!(matches!(refused, Err(Refused::Names(_))), "{what}: {refused:?}");
    }
}

#[test]
fn asking_to_be_an_authority_is_of_no_use() {
    let request = request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    if let Ok(issued) = issuer().certify(&request, &web(), DAY) {
        assert!(!Certificate::read(&issued.leaf).unwrap().is_ca);
    }
    let unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![5, 0]);
    let request = self::request(|params| params.custom_extensions.push(unknown));
    if let Ok(issued) = issuer().certify(&request, &web(), DAY) {
        assert_eq!(Certificate::read(&issued.leaf).unwrap().names.len(), 2);
    }
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let mut request = Key::generate().request(&web());
    *request.last_mut().unwrap() ^= 1;
    let refused = issuer().certify(&request, &web(), DAY);
    assert!(matches!(refused, Err(Refused::Malformed(_))), "{refused:?}");
}

#[test]
fn other_kinds_of_keys_are_refused() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(WEB.try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap();
    assert_eq!(issuer().certify(request.der(), &web(), DAY).unwrap_err(), Refused::Key);
}

#[test]
fn an_issuer_belongs_to_its_key_and_its_root() {
    let (one, two) = (
        Root::generate("one", 365 * DAY, DAY).unwrap(),
        Root::generate("two", 365 * DAY, DAY).unwrap(),
    );
    let mixed = Issuer::from_pem(&one.issuer, &two.issuer_key);
    assert!(matches!(mixed, Err(IssuerError::Mismatch)), "{mixed:?}");
    let issuer = Issuer::from_pem(&one.issuer, &one.issuer_key).unwrap();
    issuer.verify(&TrustBundle::from_pem(&one.root).unwrap()).unwrap();
    let both = TrustBundle::from_pem(&format!("{}{}", two.root, one.root)).unwrap();
    issuer.verify(&both).unwrap();
    let untrusted = issuer.verify(&TrustBundle::from_pem(&two.root).unwrap());
    assert!(matches!(untrusted, Err(IssuerError::Untrusted(_))), "{untrusted:?}");
}

proptest! {
    #[test]
    fn no_request_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        thread_local!(static ISSUER: Issuer = issuer());
        ISSUER.with(|issuer| assert!(issuer.certify(&bytes, &web(), DAY).is_err()));
    }

    #[test]
    fn no_change_of_a_request_certifies_another_name(at in 0usize..200, bit in 0u8..8) {
        thread_local!(static MADE: (Issuer, Vec<u8>) = (issuer(), Key::generate().request(&web())));
        MADE.with(|(issuer, request)| {
            let mut request = request.clone();
            let at = at % request.len();
            request[at] ^= 1 << bit;
            // The bytes around what is signed may be written in more than one way.
            if let Ok(issued) = issuer.certify(&request, &web(), DAY) {
                let certificate = Certificate::read(&issued.leaf).unwrap();
                assert_eq!(certificate.id(), Some(web().as_str()));
            }
        });
    }
}
