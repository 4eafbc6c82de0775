//! A watch is fed for as long as anybody reads it, whenever they came.

use tokio::sync::mpsc;

use super::*;
use crate::telemetry::TelemetryConfig;

/// A feed that ends because nobody reads any more, while somebody has come already: the first time the
/// feed itself plays the one who came.
#[tokio::test]
async fn who_comes_as_the_last_one_leaves_is_told_what_changes() {
    let watches = Watches::<u16, u32>::default();
    let (fed, mut feeds) = mpsc::channel(8);
    let (came, mut comes) = mpsc::channel(8);
    let first = watches.get(&80, &Handle::current(), move |_, tx: watch::Sender<u32>| {
        let (fed, came) = (fed.clone(), came.clone());
        async move {
            fed.try_send(tx.clone()).unwrap();
            tx.closed().await;
            if *tx.borrow() == 0 {
                came.try_send(tx.subscribe()).unwrap();
            }
        }
    });
    feeds.recv().await.unwrap();
    drop(first);
    let mut late = comes.recv().await.unwrap();
    let tx = feeds.recv().await.expect("the feed has begun anew");
    tx.send_replace(7);
    late.changed().await.unwrap();
    assert_eq!(*late.borrow(), 7);
    drop((late, tx));
    while watches.open.lock().contains_key(&80) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn without_a_control_plane_watches_end_with_their_readers() {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let discovery = Discovery::new(None, Resolver::default(), Handle::current(), telemetry);
    let watches = &discovery.inner;
    for _ in 0..2 {
        let (port, endpoints) = (discovery.port(80), discovery.endpoints("a:1"));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(port.has_changed().is_ok() && endpoints.has_changed().is_ok());
        drop((port, endpoints));
        while !watches.ports.open.lock().is_empty() || !watches.endpoints.open.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
