//! Failures and delays on purpose, read.

use std::str::FromStr;

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use mesh_model::Meta;
use mesh_model::route::{Fault, FaultKind, InjectedFailure, Ratio};

use super::{Reader, shape};
use crate::index::object::{Kind, policy_ref};

impl Reader<'_> {
    /// Those of a policy of this kind.
    pub(super) fn faults(&mut self, all: &[shape::Fault], policy: Kind) -> Vec<Fault> {
        let all = all.iter().enumerate();
        let read = |(index, of)| self.fault(of, policy, &format!("spec.faults[{index}]"));
        all.filter_map(read).collect()
    }

    fn fault(&mut self, of: &shape::Fault, policy: Kind, at: &str) -> Option<Fault> {
        let kind = match (&of.abort, &of.delay) {
            (Some(abort), None) => self.abort(abort, &format!("{at}.abort")).map(FaultKind::Abort),
            (None, Some(_)) => {
                let delay = self.time(&of.delay, &format!("{at}.delay"));
                if delay.is_some_and(|delay| delay > Fault::MAX_DELAY) {
                    self.error(format!("{at}.delay"), "is longer than an hour");
                }
                delay.map(FaultKind::Delay)
            }
            _ => {
                self.error(at, "a fault is either an abort or a delay");
                None
            }
        };
        let percent = of.percent.unwrap_or(100);
        if !(1..=100).contains(&percent) {
            self.error(format!("{at}.percent"), "is not from 1 to 100");
        }
        let headers = of.headers.iter().enumerate();
        let headers = headers
            .filter_map(|(index, header)| self.header(header, &format!("{at}.headers[{index}]")))
            .collect();
        let until = of.until.as_ref().and_then(|text| {
            let time = Timestamp::from_str(text).ok();
            if time.is_none() {
                let message = format!("`{text}` is not a time such as 2026-01-31T12:00:00Z");
                self.error(format!("{at}.until"), message);
            }
            time
        });
        Some(Fault {
            meta: Meta::Resource(policy_ref(policy, &self.name)),
            headers,
            ratio: Ratio { numerator: percent, denominator: 100 },
            kind: kind?,
            until: until.map(Into::into),
        })
    }

    fn abort(&mut self, of: &shape::Abort, at: &str) -> Option<InjectedFailure> {
        match (of.http_status, of.grpc_code) {
            (Some(status), None) => {
                let status = StatusCode::from_u16(status).ok().filter(|_| status < 600);
                if status.is_none_or(|status| status.as_u16() < 200) {
                    self.error(format!("{at}.httpStatus"), "is not a status from 200 to 599");
                }
                status.map(InjectedFailure::Http)
            }
            (None, Some(code)) => {
                if !(1..=16).contains(&code) {
                    self.error(format!("{at}.grpcCode"), "is not a code from 1 to 16");
                }
                Some(InjectedFailure::Grpc(code))
            }
            _ => {
                self.error(at, "an abort has either an httpStatus or a grpcCode");
                None
            }
        }
    }
}
