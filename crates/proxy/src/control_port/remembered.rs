//! Remembered requests as they are told.

use std::time::SystemTime;

use mesh_api::ext;
use mesh_model::{Direction, Reason};

use crate::telemetry::notable::{Remembered, Try};

pub(super) fn write(request: &Remembered) -> ext::NotableExchange {
    let started = request.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let direction = match request.direction {
        Direction::Inbound => ext::Direction::Inbound,
        Direction::Outbound => ext::Direction::Outbound,
    };
    ext::NotableExchange {
        id: request.id.to_string(),
        started_unix_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
        direction: direction.into(),
        source: request.source.to_string(),
        method: request.method.clone(),
        authority: request.authority.clone(),
        path: request.path.clone(),
        notable: request.why.as_str().into(),
        parent: request.parent.to_string(),
        route: request.route.to_string(),
        tries: request.tries.iter().map(write_try).collect(),
        status: request.status.into(),
        grpc_status: request.grpc_status.map(u32::from),
        reason: code(request.reason),
        message: request.message.clone(),
        policy: request.policy.clone(),
        duration: request.duration.try_into().ok(),
        identity: request.identity.clone(),
    }
}

fn write_try(tried: &Try) -> ext::NotableTry {
    ext::NotableTry {
        backend: tried.backend.to_string(),
        endpoint: tried.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        status: tried.status.into(),
        grpc_status: tried.grpc_status.map(u32::from),
        reason: code(tried.reason),
        duration: tried.duration.try_into().ok(),
    }
}

fn code(reason: Option<Reason>) -> String {
    reason.map(|reason| reason.code().to_owned()).unwrap_or_default()
}
