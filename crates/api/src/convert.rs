//! Conversions between the messages of linkerd2-proxy-api and the model, one module a subject.
//!
//! Each has `read_*` functions (message → model, for what any peer may send) and `write_*` ones
//! (model → message). Neither panics; errors name the field. [`outbound`], [`endpoint`] and
//! [`inbound`] are where the messages of the streams begin.

pub(crate) mod additions;
mod authz;
mod backend;
mod distribution;
mod egress;
mod endpoint;
mod extension;
mod filter;
mod gateway;
pub(crate) mod identity;
mod inbound;
mod inbound_authz;
pub(crate) mod meta;
pub(crate) mod net;
mod outbound;
mod port;
mod request_match;
mod route;
mod tcp_route;

use crate::error::{At, ConversionError, Result};

/// The value of a field that must be set.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| ConversionError::missing(field))
}

/// Converts a list with a bound, naming the index of what fails.
pub(crate) fn list<P, T, C: FromIterator<T>>(
    items: Vec<P>,
    field: &str,
    max: usize,
    mut read: impl FnMut(P) -> Result<T>,
) -> Result<C> {
    bounded(items.len(), field, max)?;
    items.into_iter().enumerate().map(|(index, item)| read(item).at_index(field, index)).collect()
}

/// Converts a slice the other way.
pub(crate) fn write_list<T, P>(
    items: &[T],
    field: &str,
    mut write: impl FnMut(&T) -> Result<P>,
) -> Result<Vec<P>> {
    items.iter().enumerate().map(|(index, item)| write(item).at_index(field, index)).collect()
}

/// Refuses what is more than `max`.
pub(crate) fn bounded(have: usize, field: &str, max: usize) -> Result<()> {
    if have > max {
        return Err(ConversionError::too_many(field, have, max));
    }
    Ok(())
}
