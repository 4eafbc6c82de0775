//! Places for connections: a number in all, and a number for each peer, so that no single one can take
//! them from everybody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    pub(crate) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    /// `None`: there is none left, at least for this peer.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut taken = self.taken.lock();
        let own = taken.of.get(&peer).copied().unwrap_or_default();
        if taken.all >= self.all || own >= self.each {
            return None;
        }
        taken.all += 1;
        taken.of.insert(peer, own + 1);
        Some(Place { places: Arc::clone(self), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.of.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others() {
        let places = Places::new(3, 2);
        let peer = |last| IpAddr::from([10, 0, 0, last]);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let first = places.take(peer(1)).unwrap();
        let second = places.take(mapped).unwrap();
        assert!(places.take(peer(1)).is_none(), "of one peer");
        let other = places.take(peer(2)).unwrap();
        assert!(places.take(peer(3)).is_none(), "in all");
        drop((first, other));
        assert!(places.take(peer(1)).is_some());
        drop(second);
        let taken = places.taken.lock();
        assert!(taken.all == 0 && taken.of.is_empty(), "{taken:?}");
    }
}
