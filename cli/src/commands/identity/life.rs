//! How long a certificate is valid still, for tables and for checks.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use mesh_api::ext;
use mesh_tls::Certificate;

use crate::units;

/// With this share left or less, a certificate that is renewed in time would have been.
const LITTLE: f64 = 0.25;

/// From when until when, in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    from: u64,
    until: u64,
}

impl From<&Certificate> for Life {
    fn from(certificate: &Certificate) -> Self {
        Self { from: seconds(certificate.not_before), until: seconds(certificate.not_after) }
    }
}

impl From<&ext::ProxyCertificate> for Life {
    fn from(certificate: &ext::ProxyCertificate) -> Self {
        Self { from: certificate.not_before, until: certificate.not_after }
    }
}

impl Life {
    pub(crate) fn has_ended(self, now: u64) -> bool {
        self.until <= now
    }

    /// Whether it should have been renewed by now.
    pub(crate) fn is_late(self, now: u64) -> bool {
        self.share(now) <= LITTLE
    }

    /// What is left of it, 0.0 to 1.0.
    pub(super) fn share(self, now: u64) -> f64 {
        let all = self.until.saturating_sub(self.from).max(1);
        (self.until.saturating_sub(now) as f64 / all as f64).min(1.0)
    }

    /// `14h40m (61%)`, or `expired 3h ago`
    pub(crate) fn left(self, now: u64) -> String {
        if self.has_ended(now) {
            return format!("expired {} ago", units::age(now - self.until));
        }
        format!("{} ({:.0}%)", units::age(self.until - now), self.share(now) * 100.0)
    }

    /// `2026-11-26 21:49:07`
    pub(super) fn end(self, zone: &TimeZone) -> String {
        clock(self.until, zone)
    }

    pub(super) fn begin(self, zone: &TimeZone) -> String {
        clock(self.from, zone)
    }
}

pub(crate) fn now() -> u64 {
    seconds(SystemTime::now())
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn clock(seconds: u64, zone: &TimeZone) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    let local = time.map(|time| time.to_zoned(zone.clone()));
    local.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_a_share_of_all() {
        let life = Life { from: 1_000, until: 1_000 + 86_400 };
        assert_eq!(life.left(1_000), "1d (100%)");
        assert_eq!(life.left(1_000 + 43_200), "12h (50%)");
        assert_eq!(life.left(1_000 + 86_400 + 60), "expired 1m ago");
        assert_eq!(life.left(0), "1d (100%)", "it begins later");
        assert!(!life.is_late(1_000 + 64_000) && life.is_late(1_000 + 65_000));
        assert!(life.is_late(u64::MAX) && life.has_ended(1_000 + 86_400));
    }

    #[test]
    fn absurd_times_are_no_reason_to_panic() {
        let life = Life { from: u64::MAX, until: u64::MAX };
        assert_eq!(life.end(&TimeZone::UTC), "-");
        assert_eq!(Life { from: 5, until: 1 }.left(9), "expired 8s ago");
    }
}
