//! What our extensions say of a backend, and what all workers count of it together.

use mesh_api::BackendExtension;
use mesh_layers::{Budget, ConcurrencyLimit};

/// The default where the control plane has no extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackendRules {
    pub(crate) extension: BackendExtension,
    pub(crate) in_flight: Option<ConcurrencyLimit>,
    /// Of requests to the resource as a route's parent; the same one whatever its figures become.
    pub(crate) budget: Budget,
}

impl BackendRules {
    /// Whether that changes anything. What is counted is counted on.
    pub(super) fn take(&mut self, extension: BackendExtension) -> bool {
        if self.extension == extension {
            return false;
        }
        let budget = extension.retry_budget;
        let (ratio, min) =
            budget.map_or(Budget::USUAL, |b| (f64::from(b.percent) / 100.0, b.min_per_second));
        self.budget.set(ratio, min);
        self.in_flight = extension.max_in_flight.map(|max| match &self.in_flight {
            Some(limit) => limit.resized(max as usize),
            None => ConcurrencyLimit::new(max as usize),
        });
        self.extension = extension;
        true
    }
}
