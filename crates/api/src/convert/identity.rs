//! Certificates and the roots to trust.
//!
//! `identity.proto` says that certificates and requests are PEM; those who speak it send DER, and so
//! do we.

use std::time::{Duration, SystemTime};

use linkerd2_proxy_api::identity as pb;
use prost_types::Timestamp;

use super::required;
use crate::error::{ConversionError, Result};
use crate::ext;
use crate::limit;
use crate::validate::Violation;
use crate::{Certified, CertifyRequest, TrustRoots, Wire};

/// The last second of the year 9999, where protobuf's timestamps end.
const LAST_SECOND: u64 = 253_402_300_799;
/// Certificates between a leaf and its root.
const MAX_INTERMEDIATES: usize = 8;

pub(crate) fn write_request(request: CertifyRequest) -> pb::CertifyRequest {
    pb::CertifyRequest {
        identity: request.id,
        token: request.token.into_bytes(),
        certificate_signing_request: request.request,
    }
}

pub(crate) fn read_request(proto: pb::CertifyRequest) -> Result<CertifyRequest> {
    let token = String::from_utf8(proto.token)
        .map_err(|_| ConversionError::invalid("token", "is not text"))?;
    let request = proto.certificate_signing_request;
    for (field, empty) in [
        ("identity", proto.identity.is_empty()),
        ("token", token.is_empty()),
        ("certificate_signing_request", request.is_empty()),
    ] {
        if empty {
            return Err(ConversionError::missing(field));
        }
    }
    Ok(CertifyRequest { id: proto.identity, token, request })
}

impl Wire for Certified {
    type Proto = pb::CertifyResponse;

    fn from_proto(proto: pb::CertifyResponse) -> Result<Self> {
        if proto.leaf_certificate.is_empty() {
            return Err(ConversionError::missing("leaf_certificate"));
        }
        let intermediates = proto.intermediate_certificates;
        if intermediates.len() > MAX_INTERMEDIATES {
            let (field, have) = ("intermediate_certificates", intermediates.len());
            return Err(ConversionError::too_many(field, have, MAX_INTERMEDIATES));
        }
        let not_after = read_time(required(proto.valid_until, "valid_until")?)?;
        Ok(Self { leaf: proto.leaf_certificate, intermediates, not_after })
    }

    fn to_proto(&self) -> Result<pb::CertifyResponse> {
        Ok(pb::CertifyResponse {
            leaf_certificate: self.leaf.clone(),
            intermediate_certificates: self.intermediates.clone(),
            valid_until: Some(write_time(self.not_after)?),
        })
    }

    /// Its types leave nothing to check.
    fn validate(_: &pb::CertifyResponse) -> std::result::Result<(), Violation> {
        Ok(())
    }
}

fn read_time(time: Timestamp) -> Result<SystemTime> {
    let absurd = || ConversionError::invalid("valid_until", "is no time from 1970 to 9999");
    let seconds = u64::try_from(time.seconds).map_err(|_| absurd())?;
    let nanos = u32::try_from(time.nanos).map_err(|_| absurd())?;
    if seconds > LAST_SECOND || nanos >= 1_000_000_000 {
        return Err(absurd());
    }
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).ok_or_else(absurd)
}

fn write_time(time: SystemTime) -> Result<Timestamp> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let since = since.filter(|since| since.as_secs() <= LAST_SECOND);
    let time = since.and_then(|since| {
        let (seconds, nanos) = (since.as_secs().try_into(), since.subsec_nanos().try_into());
        Some(Timestamp { seconds: seconds.ok()?, nanos: nanos.ok()? })
    });
    time.ok_or_else(|| ConversionError::unsupported("valid_until", "is no time from 1970 to 9999"))
}

impl Wire for TrustRoots {
    type Proto = ext::TrustBundle;

    fn from_proto(proto: ext::TrustBundle) -> Result<Self> {
        if proto.pem_roots.is_empty() {
            return Err(ConversionError::missing("pem_roots"));
        }
        if proto.pem_roots.len() > limit::PEM_BYTES {
            let why = format!("has more than {} bytes", limit::PEM_BYTES);
            return Err(ConversionError::invalid("pem_roots", why));
        }
        Ok(Self { pem: proto.pem_roots, trust_domain: proto.trust_domain })
    }

    fn to_proto(&self) -> Result<ext::TrustBundle> {
        let Self { pem, trust_domain } = self.clone();
        Ok(ext::TrustBundle { pem_roots: pem, trust_domain })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::TrustBundle) -> std::result::Result<(), Violation> {
        Ok(())
    }
}
