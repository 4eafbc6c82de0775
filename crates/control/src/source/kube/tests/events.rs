//! Any sequence of events, with lists that begin anew, ends as if the last state had been told at once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::convert;
use super::super::state::{Event, Force, Item, State, What};
use super::super::status::Board;
use super::*;
use crate::index::object::ObjectKey;

const KINDS: [Kind; 6] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::ReplicaSet,
    Kind::HttpRoute,
    Kind::AuthorizationPolicy,
];

/// Something that happens to one of a few objects.
#[derive(Clone, Debug)]
enum Step {
    Put {
        kind: usize,
        name: u8,
        variant: u8,
    },
    Delete {
        kind: usize,
        name: u8,
    },
    /// The watch is away; so much happens meanwhile, and the list may be interrupted once.
    Relist {
        kind: usize,
        meanwhile: Vec<(u8, Option<u8>)>,
        interrupted: bool,
    },
    Absent {
        kind: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (kind, name, variant) = (0..KINDS.len(), 0..3u8, 0..4u8);
    let change = (name.clone(), proptest::option::of(variant.clone()));
    prop_oneof![
        6 => (kind.clone(), name.clone(), variant)
            .prop_map(|(kind, name, variant)| Step::Put { kind, name, variant }),
        2 => (kind.clone(), name).prop_map(|(kind, name)| Step::Delete { kind, name }),
        2 => (kind, proptest::collection::vec(change, 0..4), any::<bool>())
            .prop_map(|(kind, meanwhile, interrupted)| Step::Relist { kind, meanwhile, interrupted }),
        1 => (4..KINDS.len()).prop_map(|kind| Step::Absent { kind }),
    ]
}

/// An object of a kind, one of four ways.
fn item(kind: Kind, name: u8, variant: u8) -> Item {
    let text = format!("n{name}");
    let other = format!("n{}", variant % 3);
    let of = |value: Value| serde_json::from_value(value).unwrap();
    match kind {
        Kind::Service => {
            let mut service = service(&text, &format!("10.0.0.{}", variant + 1));
            if variant == 3 {
                // A problem, but in force.
                service["metadata"]["annotations"] =
                    json!({ "config.meshctl.dev/opaque-port": "1" });
            }
            convert::service(&serde_json::from_value(service).unwrap())
        }
        Kind::EndpointSlice => {
            let mut slice = slice(&text, &other, &other, &format!("10.1.0.{variant}"));
            if variant == 3 {
                slice["metadata"]["labels"] = json!({});
            }
            convert::endpoint_slice(&serde_json::from_value(slice).unwrap())
        }
        Kind::Pod => {
            let pod = pod(&text, &format!("10.1.0.{variant}"), &other);
            convert::pod(&serde_json::from_value(pod).unwrap())
        }
        Kind::ReplicaSet => {
            let mut set = replica_set(&text, &format!("d{variant}"));
            if variant == 3 {
                set["metadata"]["ownerReferences"] = json!([]);
            }
            let meta = serde_json::from_value(set["metadata"].take()).unwrap();
            convert::workload(kind, &meta)
        }
        Kind::HttpRoute => {
            let port = if variant == 3 { json!(null) } else { json!(80) };
            let route = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": { "name": text, "namespace": "shop", "generation": variant },
                "spec": {
                    "parentRefs": [{ "group": "", "kind": "Service", "name": other }],
                    "rules": [{ "backendRefs": [{ "name": other, "port": port }] }],
                },
            });
            convert::custom(kind, &MeshNames::default(), false, of(route))
        }
        _ => {
            let account = if variant == 3 { "a/b/c".to_owned() } else { other };
            convert::custom(kind, &MeshNames::default(), false, of(policy(&text, &account)))
        }
    }
}

/// What a cluster holds, and what of it came into force last.
#[derive(Default)]
struct Cluster {
    objects: BTreeMap<(usize, u8), u8>,
    in_force: BTreeMap<(usize, u8), u8>,
}

impl Cluster {
    fn put(&mut self, kind: usize, name: u8, variant: u8) -> What {
        self.objects.insert((kind, name), variant);
        self.told(kind, name, variant)
    }

    fn told(&mut self, kind: usize, name: u8, variant: u8) -> What {
        let item = item(KINDS[kind], name, variant);
        if !matches!(item.force, Force::Keep) {
            self.in_force.insert((kind, name), variant);
        }
        What::Put(Box::new(item))
    }

    fn list(&mut self, kind: usize) -> Vec<What> {
        let of =
            |((of, name), variant): (&(usize, u8), &u8)| (*of == kind).then_some((*name, *variant));
        let listed: Vec<(u8, u8)> = self.objects.iter().filter_map(of).collect();
        listed.into_iter().map(|(name, variant)| self.told(kind, name, variant)).collect()
    }

    fn forget(&mut self) {
        self.in_force.retain(|key, _| self.objects.contains_key(key));
    }
}

/// Everything there is to compare.
fn all(index: &Index, state: &mut State, board: &Board) -> String {
    let objects = index.objects();
    // What was wrong for a while and is not any more was told, too; the last word counts.
    state.take(
        Event { kind: Kind::Job, what: What::Failed("now".into()) },
        &mut Index::default().batch(),
    );
    format!(
        "{:#?}",
        (
            objects.services().collect::<Vec<_>>(),
            objects.pods().collect::<Vec<_>>(),
            objects.http_routes().collect::<Vec<_>>(),
            objects.workloads().collect::<Vec<_>>(),
            (0..3).map(|n| objects.endpoints(&shop(&format!("n{n}")), 80)).collect::<Vec<_>>(),
            (0..3).map(|n| objects.services_of_pod(&shop(&format!("n{n}")))).collect::<Vec<_>>(),
            objects.names(Kind::EndpointSlice),
            objects.names(Kind::AuthorizationPolicy),
            (0..3)
                .map(|n| objects.authorization_policy(&shop(&format!("n{n}"))).cloned())
                .collect::<Vec<_>>(),
            state.new_problems(),
            KINDS.map(|kind| board.names(kind)),
        )
    )
}

proptest! {
    #[test]
    fn the_end_is_that_of_the_last_state(steps in proptest::collection::vec(step(), 1..40)) {
        let board = Arc::new(Board::default());
        let (mut state, mut index) = (State::new(Arc::clone(&board)), Index::default());
        let mut cluster = Cluster::default();
        for step in steps {
            let (kind, events) = match step {
                Step::Put { kind, name, variant } => (kind, vec![cluster.put(kind, name, variant)]),
                Step::Delete { kind, name } => {
                    cluster.objects.remove(&(kind, name));
                    (kind, vec![What::Gone(shop(&format!("n{name}")))])
                }
                Step::Relist { kind, meanwhile, interrupted } => {
                    let mut events = Vec::new();
                    if interrupted {
                        events.push(What::Begin);
                        events.extend(cluster.list(kind));
                    }
                    for (name, variant) in meanwhile {
                        match variant {
                            Some(variant) => cluster.objects.insert((kind, name), variant),
                            None => cluster.objects.remove(&(kind, name)),
                        };
                    }
                    events.push(What::Begin);
                    events.extend(cluster.list(kind));
                    events.push(What::Complete);
                    (kind, events)
                }
                Step::Absent { kind } => {
                    cluster.objects.retain(|(of, _), _| *of != kind);
                    (kind, vec![What::Absent])
                }
            };
            for what in events {
                state.take(Event { kind: KINDS[kind], what }, &mut index.batch());
            }
            cluster.forget();
        }

        let fresh_board = Arc::new(Board::default());
        let (mut fresh, mut expected) = (State::new(Arc::clone(&fresh_board)), Index::default());
        for ((kind, name), variant) in &cluster.objects {
            let kind_of = KINDS[*kind];
            let good = cluster.in_force.get(&(*kind, *name));
            for variant in good.into_iter().chain([variant]) {
                let what = What::Put(Box::new(item(kind_of, *name, *variant)));
                fresh.take(Event { kind: kind_of, what }, &mut expected.batch());
            }
        }
        prop_assert_eq!(all(&index, &mut state, &board), all(&expected, &mut fresh, &fresh_board));
    }
}

#[test]
fn all_kinds_are_listed_once_before_the_state_is_complete() {
    use super::super::state::{OPTIONAL, REQUIRED};
    let (mut state, mut index) = (State::new(Arc::default()), Index::default());
    for kind in REQUIRED.into_iter().chain(OPTIONAL) {
        assert!(!state.is_complete(), "before {}", kind.as_str());
        let what = if OPTIONAL.contains(&kind) { What::Absent } else { What::Complete };
        state.take(Event { kind, what: What::Begin }, &mut index.batch());
        state.take(Event { kind, what }, &mut index.batch());
    }
    assert!(state.is_complete());
    let key = ObjectKey { kind: Kind::Pod, name: shop("x") };
    state.take(Event { kind: key.kind, what: What::Begin }, &mut index.batch());
    assert!(state.is_complete(), "a list that begins anew changes nothing in that");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_until_it_is_over() {
    let (mut state, mut index) = (State::new(Arc::default()), Index::default());
    let failed = || Event { kind: Kind::Pod, what: What::Failed("forbidden".into()) };
    state.take(failed(), &mut index.batch());
    let problems = state.new_problems().unwrap();
    assert_eq!(problems[0].message, "Pods cannot be watched: forbidden");
    state.take(failed(), &mut index.batch());
    assert_eq!(state.new_problems(), None, "no news");
    state.take(Event { kind: Kind::Pod, what: What::Begin }, &mut index.batch());
    assert_eq!(state.new_problems(), Some(Vec::new()));

    state.take(failed(), &mut index.batch());
    state.forget_failures(Instant::now());
    assert_eq!(state.new_problems().unwrap().len(), 1);
    tokio::time::advance(Duration::from_secs(61)).await;
    state.forget_failures(Instant::now());
    assert_eq!(state.new_problems(), Some(Vec::new()));
}
