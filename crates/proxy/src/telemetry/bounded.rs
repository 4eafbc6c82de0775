//! A table of metrics by label set that never grows past its bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::labels::{Pairs, Rendered};

/// Metrics by label set. Past `max` sets, those nobody holds a handle of are dropped; if that
/// frees nothing, new sets share one metric that is shown with `overflow="true"`.
#[derive(Debug)]
pub(super) struct Bounded<L, M> {
    max: usize,
    table: Mutex<BTreeMap<L, Arc<M>>>,
    overflow: Arc<M>,
    overflowed: AtomicBool,
}

impl<L: Ord + Clone, M: Default> Bounded<L, M> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            table: Mutex::default(),
            overflow: Arc::default(),
            overflowed: AtomicBool::new(false),
        }
    }

    pub(super) fn get(&self, labels: &L) -> Arc<M> {
        let mut table = self.table.lock();
        if let Some(found) = table.get(labels) {
            return found.clone();
        }
        if table.len() >= self.max {
            table.retain(|_, metric| Arc::strong_count(metric) > 1);
        }
        if table.len() >= self.max {
            self.overflowed.store(true, Relaxed);
            return self.overflow.clone();
        }
        table.entry(labels.clone()).or_default().clone()
    }

    /// All metrics by their labels as text; the overflow only once something went there.
    pub(super) fn all(&self) -> Entries<M>
    where
        L: Pairs,
    {
        let mut all = Entries::new();
        for (labels, metric) in self.table.lock().iter() {
            all.entry(Rendered::of(labels)).or_default().push(metric.clone());
        }
        if self.overflowed.load(Relaxed) {
            all.insert(Rendered::overflow(), vec![self.overflow.clone()]);
        }
        all
    }
}

/// Metrics by labels; several with the same are to be added up.
pub(super) type Entries<M> = BTreeMap<Rendered, Vec<Arc<M>>>;

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Bounded<u32, AtomicBool>;

    impl Pairs for u32 {
        fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
            visit("number", &self.to_string());
        }
    }

    #[test]
    fn the_same_labels_share_a_metric() {
        let table = Table::new(2);
        assert!(Arc::ptr_eq(&table.get(&1), &table.get(&1)));
        assert!(!Arc::ptr_eq(&table.get(&1), &table.get(&2)));
    }

    #[test]
    fn a_full_table_drops_what_nobody_holds_and_then_overflows() {
        let table = Table::new(2);
        let one = table.get(&1);
        table.get(&2);
        let three = table.get(&3);
        let labels = |table: &Table| table.all().into_keys().collect::<Vec<_>>();
        let number = |number: u32| Rendered::of(&number);
        assert_eq!(labels(&table), [number(1), number(3)]);

        let four = table.get(&4);
        assert!(Arc::ptr_eq(&four, &table.get(&5)), "both are the overflow");
        assert_eq!(labels(&table), [number(1), number(3), Rendered::overflow()]);
        drop((one, three));
        table.get(&6);
        assert_eq!(
            labels(&table),
            [number(6), Rendered::overflow()],
            "what overflowed stays on the page"
        );
    }
}
