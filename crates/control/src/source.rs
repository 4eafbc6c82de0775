//! Where the control plane learns the cluster's state from.
//!
//! A source turns Kubernetes objects into those of the index ([`kubernetes`], [`gateway`],
//! [`policy`], [`annotations`]) and keeps the index up to date. There are two: [`mod@kube`], an API server,
//! and [`local`], files on this machine.

pub mod annotations;
pub mod gateway;
pub mod kube;
pub mod kubernetes;
pub mod local;
pub mod policy;

use std::fmt;
use std::path::PathBuf;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object is not in force; the last good one is, if there was one.
    Error,
    /// The object is in force, with a reservation.
    Warning,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something wrong with one object, found while it was converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// `spec.rules[0].backendRefs[1].weight`
    pub field: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl Finding {
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, field: field.into(), message: message.into() }
    }

    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, field: field.into(), message: message.into() }
    }
}

/// A finding, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// `HTTPRoute/shop/checkout`, or empty.
    pub object: String,
    pub file: Option<PathBuf>,
    /// From 1; 0 is unknown.
    pub line: u32,
    pub field: String,
    pub message: String,
}

/// `routes.yaml:12: HTTPRoute/shop/tax: spec.rules[0].timeouts.request: …`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}
