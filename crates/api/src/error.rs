//! Why a message or a model value has no counterpart on the other side, and where in it.

use std::fmt;

/// A value that cannot be converted. `Display` names the field by its path, as in
/// `protocol.http1.routes[3].rules[0].backends: no weight is above 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversionError {
    field: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("is missing, or of a kind this version does not know")]
    Missing,
    #[error("{0}")]
    Invalid(String),
    #[error("has {have} items, more than the {max} allowed")]
    TooMany { have: usize, max: usize },
    #[error("{0}")]
    Unsupported(String),
}

impl ConversionError {
    /// A required field, or a `oneof` whose variant is unset or unknown.
    pub(crate) fn missing(field: &str) -> Self {
        Self { field: field.into(), problem: Problem::Missing }
    }

    pub(crate) fn invalid(field: &str, why: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: Problem::Invalid(why.to_string()) }
    }

    pub(crate) fn too_many(field: &str, have: usize, max: usize) -> Self {
        Self { field: field.into(), problem: Problem::TooMany { have, max } }
    }

    /// Meaningful, but the other side has no words for it.
    pub(crate) fn unsupported(field: &str, why: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: Problem::Unsupported(why.to_string()) }
    }

    /// A label for metrics, one of four.
    pub fn reason(&self) -> &'static str {
        match self.problem {
            Problem::Missing => "missing",
            Problem::Invalid(_) => "invalid",
            Problem::TooMany { .. } => "too-many",
            Problem::Unsupported(_) => "unsupported",
        }
    }

    /// The path of the field at fault, in proto field names.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for ConversionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return self.problem.fmt(f);
        }
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for ConversionError {}

pub(crate) type Result<T> = std::result::Result<T, ConversionError>;

/// Says where an error happened, from the inside out.
pub(crate) trait At {
    /// Inside `field`.
    fn at(self, field: &str) -> Self;
    /// Inside the item `index` of the list `field`.
    fn at_index(self, field: &str, index: usize) -> Self;
}

/// An error that knows its field.
pub(crate) trait HasField {
    fn field_mut(&mut self) -> &mut String;
}

impl HasField for ConversionError {
    fn field_mut(&mut self) -> &mut String {
        &mut self.field
    }
}

impl<T, E: HasField> At for std::result::Result<T, E> {
    fn at(mut self, field: &str) -> Self {
        if let Err(error) = &mut self {
            let inner = error.field_mut();
            if !inner.is_empty() && !field.is_empty() {
                inner.insert(0, '.');
            }
            inner.insert_str(0, field);
        }
        self
    }

    fn at_index(self, field: &str, index: usize) -> Self {
        if self.is_ok() { self } else { self.at(&format!("{field}[{index}]")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_reads_from_the_outside_in() {
        let error: Result<()> = Err(ConversionError::missing("queue"));
        let error = error.at("backend").at_index("rules", 2).unwrap_err();
        assert_eq!(error.field(), "rules[2].backend.queue");
        assert_eq!(error.reason(), "missing");
        assert!(error.to_string().starts_with("rules[2].backend.queue: is missing"));
    }
}
