//! Faults of a port of the workload: what clients are to see of it. Those of routes are filters
//! ([`super::filters`]), which know a request's rule.

use std::sync::Arc;
use std::time::Duration;

use mesh_layers::Request;
use mesh_model::route::Fault;

use super::filters::{Done, hit};
use crate::draws::Deck;

/// The faults of a port, each with its share dealt for itself.
#[derive(Debug)]
pub(crate) struct Faults(Vec<(Fault, Deck)>);

impl Faults {
    /// `None` without any. Those that stay the same are dealt on.
    pub(crate) fn new(faults: &[Fault], before: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if let Some(before) = before.filter(|before| before.all().eq(faults)) {
            return Some(Arc::clone(before));
        }
        let all = faults.iter().map(|fault| (fault.clone(), Deck::default()));
        (!faults.is_empty()).then(|| Arc::new(Self(all.collect())))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter().map(|(fault, _)| fault)
    }

    /// What becomes of a request. What ends it does so at once, whatever else delays it.
    pub(crate) fn meet(&self, request: &Request) -> Done {
        let mut delay = Duration::ZERO;
        for (fault, deck) in &self.0 {
            match hit(fault, request, || deck.next()) {
                Done::Nothing => {}
                Done::Delay(by) => delay += by,
                answer @ Done::Answer(_) => return answer,
            }
        }
        if delay.is_zero() { Done::Nothing } else { Done::Delay(delay.min(Fault::MAX_DELAY)) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::StatusCode;
    use mesh_layers::Body;
    use mesh_model::Meta;
    use mesh_model::route::{FaultKind, InjectedFailure, Ratio};

    use super::*;

    fn fault(kind: FaultKind, percent: u32) -> Fault {
        Fault {
            meta: Meta::Default("chaos".into()),
            headers: Vec::new(),
            ratio: Ratio { numerator: percent, denominator: 100 },
            kind,
            until: None,
        }
    }

    const ABORT: FaultKind =
        FaultKind::Abort(InjectedFailure::Http(StatusCode::SERVICE_UNAVAILABLE));

    #[test]
    fn shares_are_kept_and_dealt_on_when_they_stay() {
        let half = [fault(ABORT, 50)];
        let mut faults = Faults::new(&half, None);
        let mut hit = 0;
        for _ in 0..64 {
            faults = Faults::new(&half, faults.as_ref());
            let met = faults.as_ref().unwrap().meet(&Request::new(Body::empty()));
            hit += usize::from(matches!(met, Done::Answer(_)));
        }
        // Of one round of the deck exactly half.
        assert_eq!(hit, 32);
        assert!(Faults::new(&[], faults.as_ref()).is_none());
    }

    #[test]
    fn delays_add_up_and_what_ends_a_request_ends_it_at_once() {
        let delay = |ms| fault(FaultKind::Delay(Duration::from_millis(ms)), 100);
        let over = Fault { until: Some(SystemTime::UNIX_EPOCH), ..fault(ABORT, 100) };
        let meet = |faults: &[Fault]| {
            Faults::new(faults, None).unwrap().meet(&Request::new(Body::empty()))
        };
        let Done::Delay(by) = meet(&[delay(20), over, delay(30)]) else { panic!("a delay") };
        assert_eq!(by, Duration::from_millis(50));
        let long = Fault::MAX_DELAY.as_millis().try_into().unwrap();
        let Done::Delay(by) = meet(&[delay(long), delay(long)]) else { panic!("a delay") };
        assert_eq!(by, Fault::MAX_DELAY, "of all together");
        let until = Some(SystemTime::now() + Duration::from_secs(5));
        let Done::Delay(by) = meet(&[Fault { until, ..delay(long) }]) else { panic!("a delay") };
        assert!(by <= Duration::from_secs(5), "no longer than the fault itself: {by:?}");
        let Done::Answer(response) = meet(&[delay(20), fault(ABORT, 100)]) else { panic!("503") };
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-mesh-reason"], "fault-injected");
    }
}
