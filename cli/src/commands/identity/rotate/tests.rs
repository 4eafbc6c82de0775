//! Rotations against proxies that follow the files of the authority, each when it likes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::state_dir::{StateDir, StateRoot};

/// The proxies of a mesh, and the files they follow.
struct Fleet {
    _home: tempfile::TempDir,
    dir: StateDir,
    rows: RefCell<Vec<ext::ProxyRow>>,
    /// The root that each issuer ever seen was signed by, by the issuer's name.
    signed_by: RefCell<BTreeMap<String, String>>,
    /// Which of them follow, look by look; all do when it is over.
    schedule: RefCell<Vec<Vec<bool>>>,
    out: crate::testing::Captured,
}

impl Fleet {
    fn new(size: usize, schedule: Vec<Vec<bool>>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("default").unwrap();
        std::fs::create_dir(&dir.path).unwrap();
        Authority::create(&dir).unwrap();
        let row = |at: usize| ext::ProxyRow {
            identity: Some(ext::ProxyIdentity::default()),
            ..crate::testing::proxy_row(&format!("web-{at}"))
        };
        let fleet = Self {
            _home: home,
            dir,
            rows: RefCell::new((0..size).map(row).collect()),
            signed_by: RefCell::default(),
            schedule: RefCell::new(schedule),
            out: crate::testing::Captured::default(),
        };
        fleet.follow(&[]);
        fleet
    }

    fn authority(&self) -> Authority {
        Authority::of(&self.dir).unwrap()
    }

    fn fingerprints(&self) -> Vec<String> {
        let mut all: Vec<_> =
            self.authority().roots().unwrap().into_iter().map(|root| root.fingerprint).collect();
        all.sort();
        all
    }

    /// Those that are not held back take over what the files say.
    fn follow(&self, follows: &[bool]) {
        let issuer = self.authority().verify().unwrap();
        let issuer = issuer.certificate();
        let mut roots = self.authority().roots().unwrap().into_iter();
        let root = roots.find(|root| root.certificate.subject == issuer.issuer);
        self.signed_by.borrow_mut().insert(issuer.subject.clone(), root.unwrap().fingerprint);
        for (at, row) in self.rows.borrow_mut().iter_mut().enumerate() {
            let Some(identity) = &mut row.identity else { continue };
            if follows.get(at).copied().unwrap_or(true) {
                identity.roots = self.fingerprints();
                identity.certificate = Some(ext::ProxyCertificate {
                    issuer: issuer.subject.clone(),
                    not_after: life::now() + 3600,
                    ..ext::ProxyCertificate::default()
                });
            }
        }
    }

    /// Every proxy accepts every other.
    fn assert_connected(&self) {
        let rows = self.rows.borrow();
        let known = rows.iter().filter_map(|row| row.identity.as_ref());
        let proven = known.clone().filter_map(|identity| identity.certificate.as_ref());
        for certificate in proven {
            let root = &self.signed_by.borrow()[&certificate.issuer];
            for identity in known.clone() {
                assert!(identity.roots.contains(root), "{identity:?} refuses {certificate:?}");
            }
        }
    }

    fn look(&self) -> Vec<ext::ProxyRow> {
        let mut schedule = self.schedule.borrow_mut();
        let follows = if schedule.is_empty() { Vec::new() } else { schedule.remove(0) };
        self.follow(&follows);
        self.assert_connected();
        self.rows.borrow().clone()
    }

    async fn rotate(&self) -> Result<(), CliError> {
        let mut rotation = Rotation {
            authority: self.authority(),
            ask: async || Ok(self.look()),
            deadline: Instant::now() + Duration::from_secs(60),
            ui: Ui::plain(self.out.clone(), std::io::sink()),
        };
        rotation.run().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_ends_with_another_root_and_says_what_it_did() {
    let fleet = Fleet::new(3, vec![vec![false; 3], vec![true, false, false]]);
    let (before, issuer) = (fleet.fingerprints(), fleet.authority().issuer().unwrap());
    fleet.rotate().await.unwrap();
    let after = fleet.fingerprints();
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
    let present = fleet.authority().verify().unwrap();
    assert_ne!(present.certificate().subject, issuer.certificate().subject);
    assert!(fleet.authority().next().unwrap().is_none());
    let told = fleet.out.text();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("prepare      mesh "), "{told}");
    assert_eq!(lines[1], "distribute   3 of 3 proxies trust the new root");
    assert_eq!(lines[2], "reissue      3 of 3 proxies are certified by the new issuer");
    assert_eq!(lines[3], "drop         3 of 3 proxies trust the new root alone");
}

#[tokio::test(start_paused = true)]
async fn who_still_needs_the_old_root_keeps_it_and_is_named() {
    // The second proxy follows once, and then no more.
    let mut schedule = vec![vec![true, false]; 1000];
    schedule.insert(0, vec![true, true]);
    let fleet = Fleet::new(2, schedule);
    let old = fleet.fingerprints();
    let error = fleet.rotate().await.unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut);
    assert!(error.message.starts_with("reissue: 1 of 2 proxies"), "{error}");
    assert!(error.message.contains("shop/web-1 needs the old root"), "{error}");
    assert_eq!(fleet.fingerprints().len(), 2);
    assert!(fleet.fingerprints().contains(&old[0]));

    // It goes on with the same root where it was.
    let next = fleet.authority().next().unwrap().unwrap().root.fingerprint;
    fleet.schedule.borrow_mut().clear();
    fleet.rotate().await.unwrap();
    assert_eq!(fleet.fingerprints(), [next]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_reissued_before_all_trust_the_new_root() {
    let fleet = Fleet::new(7, vec![vec![false; 7]; 1000]);
    fleet.rows.borrow_mut()[6].reachable = false;
    fleet.rows.borrow_mut()[6].error = "connection refused".into();
    let issuer = fleet.authority().issuer().unwrap();
    let error = fleet.rotate().await.unwrap_err();
    assert!(error.message.starts_with("distribute: 0 of 7 proxies"), "{error}");
    assert!(error.message.ends_with("; and 2 more"), "{error}");
    assert_eq!(fleet.authority().issuer().unwrap().certificate(), issuer.certificate());
}

#[tokio::test(start_paused = true)]
async fn those_without_an_identity_are_not_waited_for() {
    let fleet = Fleet::new(2, Vec::new());
    fleet.rows.borrow_mut()[0].identity = None;
    fleet.rotate().await.unwrap();
    assert!(fleet.out.text().contains("1 of 1 proxies"), "{}", fleet.out.text());
}

/// Such a proxy cannot take new roots into use before it has a new certificate.
#[tokio::test(start_paused = true)]
async fn an_expired_certificate_does_not_stop_the_new_root() {
    let fleet = Fleet::new(2, vec![vec![false; 2]; 3]);
    let mut rows = fleet.rows.take();
    for row in &mut rows {
        row.identity.as_mut().unwrap().certificate.as_mut().unwrap().not_after = 1;
    }
    *fleet.rows.borrow_mut() = rows;
    fleet.rotate().await.unwrap();
    assert!(fleet.out.text().starts_with("prepare"), "{}", fleet.out.text());
}

#[test]
fn two_rotations_do_not_go_on_at_once() {
    let fleet = Fleet::new(1, Vec::new());
    let first = lock(&fleet.authority()).unwrap();
    let second = lock(&fleet.authority()).unwrap_err();
    assert!(second.message.contains("just now"), "{second}");
    drop(first);
    lock(&fleet.authority()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_order_in_which_proxies_follow_parts_them(
        schedule in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 4), 0..20),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let fleet = Fleet::new(4, schedule);
        runtime.block_on(fleet.rotate()).unwrap();
        prop_assert_eq!(fleet.fingerprints().len(), 1);
        fleet.assert_connected();
    }

    /// Whoever is cut off after any number of looks finds the way to the end from there.
    #[test]
    fn a_rotation_goes_on_wherever_it_was_cut_off(looks in 0usize..12) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let fleet = Fleet::new(2, vec![vec![false, true]; 12]);
        let limit = LOOK * u32::try_from(looks).unwrap();
        let _ = runtime.block_on(async { tokio::time::timeout(limit, fleet.rotate()).await });
        fleet.schedule.borrow_mut().clear();
        runtime.block_on(fleet.rotate()).unwrap();
        prop_assert_eq!(fleet.fingerprints().len(), 1);
        prop_assert!(fleet.authority().next().unwrap().is_none());
        fleet.authority().verify().unwrap();
    }
}
