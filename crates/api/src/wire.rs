//! One trait for the messages that streams carry: there, back, and fit to be sent.

use crate::error::ConversionError;
use crate::validate::Violation;

/// A model value that travels as one message.
pub trait Wire: Sized {
    /// Its message.
    type Proto;

    /// Reads a message of any peer.
    ///
    /// # Errors
    /// When a part is missing, out of bounds or unknown; the error names it.
    fn from_proto(proto: Self::Proto) -> Result<Self, ConversionError>;

    /// The message for the value.
    ///
    /// # Errors
    /// When the API has no words for a part; the error names it.
    fn to_proto(&self) -> Result<Self::Proto, ConversionError>;

    /// The emit checklist, see [`crate::validate`].
    ///
    /// # Errors
    /// The first rule that is broken, and where.
    fn validate(proto: &Self::Proto) -> Result<(), Violation>;

    /// The message, checked: what a server sends.
    ///
    /// # Errors
    /// When the value cannot be expressed, or must not be sent.
    fn encode(&self) -> Result<Self::Proto, EncodeError> {
        let proto = self.to_proto()?;
        Self::validate(&proto)?;
        Ok(proto)
    }
}

/// Why a value cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("cannot be expressed: {0}")]
    Conversion(#[from] ConversionError),
    #[error("breaks a rule of the API: {0}")]
    Violation(#[from] Violation),
}
