//! Handles of those who watch something, by what it belongs to.
//!
//! A watched thing exists once however many proxies watch it, and only as long as one does.

use std::collections::HashMap;
use std::hash::Hash;

use tokio::sync::watch;

/// Watched values of type `V`: several (`S`) for each owner (`O`).
#[derive(Debug)]
pub(super) struct Watches<O, S, V> {
    by_owner: HashMap<O, Vec<(S, watch::Sender<V>)>>,
    len: usize,
    /// Forgotten watches are swept out when there are this many, so that the cost is amortised.
    sweep_at: usize,
}

const SWEEP_AT_LEAST: usize = 64;

impl<O, S, V> Default for Watches<O, S, V> {
    fn default() -> Self {
        Self { by_owner: HashMap::new(), len: 0, sweep_at: SWEEP_AT_LEAST }
    }
}

impl<O: Eq + Hash + Clone, S: Eq + Clone, V: PartialEq> Watches<O, S, V> {
    /// Watches `of` its owner, whose value is `now`.
    pub(super) fn subscribe(&mut self, owner: O, of: S, now: V) -> watch::Receiver<V> {
        if self.len >= self.sweep_at {
            self.sweep();
        }
        let watches = self.by_owner.entry(owner).or_default();
        if let Some((_, sender)) = watches.iter().find(|(have, _)| *have == of) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(now);
        watches.push((of, sender));
        self.len += 1;
        receiver
    }

    /// Tells the watchers of an owner's things what they are now. `None` ends their streams: the
    /// thing is gone.
    pub(super) fn refresh(&mut self, owner: &O, mut now: impl FnMut(&S) -> Option<V>) {
        let Some(watches) = self.by_owner.get_mut(owner) else { return };
        let before = watches.len();
        watches.retain(|(of, sender)| {
            if sender.receiver_count() == 0 {
                return false;
            }
            let Some(value) = now(of) else { return false };
            sender.send_if_modified(|have| {
                let changed = *have != value;
                if changed {
                    *have = value;
                }
                changed
            });
            true
        });
        self.len -= before - watches.len();
        if watches.is_empty() {
            self.by_owner.remove(owner);
        }
    }

    /// Those of whom something is watched.
    pub(super) fn owners(&self) -> impl Iterator<Item = &O> {
        self.by_owner.keys()
    }

    /// Things watched, with some that nobody watches any more.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn sweep(&mut self) {
        self.by_owner.retain(|_, watches| {
            watches.retain(|(_, sender)| sender.receiver_count() > 0);
            !watches.is_empty()
        });
        self.len = self.by_owner.values().map(Vec::len).sum();
        self.sweep_at = (self.len * 2).max(SWEEP_AT_LEAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_share_and_see_changes_only() {
        let mut watches = Watches::<&str, u16, u32>::default();
        let mut one = watches.subscribe("a", 80, 1);
        let two = watches.subscribe("a", 80, 7);
        assert_eq!(*two.borrow(), 1);
        watches.refresh(&"a", |_| Some(1));
        assert!(!one.has_changed().unwrap());
        watches.refresh(&"a", |_| Some(2));
        assert_eq!(*one.borrow_and_update(), 2);
    }

    #[test]
    fn what_is_gone_ends_its_watchers() {
        let mut watches = Watches::<&str, u16, u32>::default();
        let one = watches.subscribe("a", 80, 1);
        watches.refresh(&"a", |_| None);
        assert!(one.has_changed().is_err());
        assert_eq!(watches.len, 0);
    }

    #[test]
    fn what_nobody_watches_is_forgotten() {
        let mut watches = Watches::<u32, u16, u32>::default();
        for owner in 0..10_000 {
            drop(watches.subscribe(owner, 80, 1));
        }
        assert!(watches.len <= SWEEP_AT_LEAST + 1, "{}", watches.len);
        let kept = watches.subscribe(1, 80, 1);
        for owner in 2..1000 {
            drop(watches.subscribe(owner, 80, 1));
        }
        assert!(kept.has_changed().is_ok());
    }
}
