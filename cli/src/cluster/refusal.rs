//! What the errors of an API server mean for the user.

use std::error::Error as _;

use kube::Error;
use kube::client::UpgradeConnectionError;
use kube::core::Status;

use super::{ANSWER, Cluster};
use crate::error::{CliError, innermost};

/// One line and one remedy; `doing` completes "not allowed to …".
pub fn refusal(cluster: &Cluster, doing: &str, error: &Error) -> CliError {
    match error {
        Error::Api(status) => answered(cluster, doing, status),
        Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
            let status =
                Status { code: code.as_u16(), message: code.to_string(), ..Status::default() };
            answered(cluster, doing, &status)
        }
        Error::Auth(error) => CliError::unreachable(format!(
            "the credentials of the kube context \"{}\" can't be had: {error}",
            cluster.context
        ))
        .hint(format!("kubectl --context {} auth whoami", cluster.context)),
        Error::SerdeError(error) => {
            CliError::failed(format!("the API server's answer makes no sense: {error}"))
        }
        other => unanswered(cluster, &innermost(other).to_string()),
    }
}

/// The API server said nothing in time.
pub fn silence(cluster: &Cluster) -> CliError {
    unanswered(cluster, &format!("nothing came within {} s", ANSWER.as_secs_f32()))
}

fn unanswered(cluster: &Cluster, why: &str) -> CliError {
    CliError::unreachable(format!(
        "the API server of the kube context \"{}\", {}, does not answer: {why}",
        cluster.context, cluster.server
    ))
    .hint(format!("kubectl --context {} version; or --local for a local mesh", cluster.context))
}

fn answered(cluster: &Cluster, doing: &str, status: &Status) -> CliError {
    let context = &cluster.context;
    // Most reasons are in the message already.
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    let said = said.replace('\n', " ");
    match status.code {
        401 => CliError::unreachable(format!(
            "the API server of the kube context \"{context}\" does not know who you are: {said}"
        ))
        .hint(format!("kubectl --context {context} auth whoami, and log in again")),
        403 => CliError::unreachable(format!("not allowed to {doing}: {said}")).hint(format!(
            "kubectl --context {context} auth can-i --list -n {}; ask for what is lacking",
            cluster.mesh_namespace
        )),
        404 => CliError::missing(said),
        408 | 504 => {
            CliError::timed_out(format!("the API server could not {doing} in time: {said}"))
        }
        429 | 500..600 => {
            CliError::unreachable(format!("the API server could not {doing}: {said}"))
                .hint(format!("kubectl --context {context} get --raw /readyz?verbose"))
        }
        _ => CliError::failed(format!("the API server refused to {doing}: {said}")),
    }
}

/// Whether it is that something is not there.
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Whether it is that we may not.
pub fn is_forbidden(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code == 403,
        Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
            code.as_u16() == 403
        }
        _ => false,
    }
}

/// The error of ours that another one carries, as those of a channel do.
pub fn carried<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CliError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ours) = error.downcast_ref() {
            return Some(ours);
        }
        cause = error.source();
    }
    None
}

/// The cause of a tonic status, likewise.
pub fn carried_by_status(status: &tonic::Status) -> Option<&CliError> {
    carried(status.source()?)
}
