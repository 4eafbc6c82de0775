//! Of several replicas one writes.

use super::super::lease::{Election, NAME};
use super::*;

const LEASES: &str = "/apis/coordination.k8s.io/v1";

struct Replica {
    leader: tokio::sync::watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn replica(api: &FakeApi, name: &str) -> Replica {
    let election = Election::new(api.client(), "mesh-system", name);
    let (leader, stop) = (election.leader(), CancellationToken::new());
    let task = tokio::spawn(election.run(stop.clone()));
    Replica { leader, stop, task }
}

impl Replica {
    async fn leads(&mut self) {
        let limit = Duration::from_secs(600);
        let led = tokio::time::timeout(limit, self.leader.wait_for(|leader| *leader)).await;
        led.expect("it never led").unwrap();
    }

    fn is_leader(&self) -> bool {
        *self.leader.borrow()
    }
}

fn holder(api: &FakeApi) -> Value {
    api.object(LEASES, "leases", "mesh-system", NAME)["spec"]["holderIdentity"].take()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_hands_over_at_its_end() {
    let api = FakeApi::new();
    let mut one = replica(&api, "one");
    one.leads().await;
    let mut two = replica(&api, "two");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(one.is_leader() && !two.is_leader());
    assert!(holder(&api).as_str().unwrap().starts_with("one_"));

    one.stop.cancel();
    one.task.await.unwrap();
    assert!(holder(&api).is_null(), "given up");
    let started = Instant::now();
    two.leads().await;
    assert!(started.elapsed() <= Duration::from_secs(11), "{:?}", started.elapsed());
    let lease = api.object(LEASES, "leases", "mesh-system", NAME);
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_one_that_crashed_expires() {
    let api = FakeApi::new();
    let mut one = replica(&api, "same-name");
    one.leads().await;
    let mut two = replica(&api, "same-name");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!two.is_leader());
    one.task.abort();
    let started = Instant::now();
    two.leads().await;
    let took = started.elapsed().as_secs();
    assert!((20..=42).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_another_may_begin() {
    let api = FakeApi::new();
    let mut one = replica(&api, "one");
    one.leads().await;
    api.set_down(true);
    let started = Instant::now();
    one.leader.wait_for(|leader| !leader).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    api.set_down(false);
    one.leads().await;
}
