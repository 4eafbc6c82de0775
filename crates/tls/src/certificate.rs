//! What a certificate says.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The parts of a certificate that the mesh looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// DNS and URI names, in the order they stand in.
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Hexadecimal.
    pub serial: String,
    /// Common name of whoever signed it, if there is one.
    pub issuer: String,
    pub subject: String,
    pub is_ca: bool,
}

/// Not a certificate.
#[derive(Debug, thiserror::Error)]
#[error("not an X.509 certificate in DER")]
pub struct CertificateError;

impl Certificate {
    /// Reads one from DER. Nothing is verified.
    ///
    /// # Errors
    /// When it is none, or its dates are before 1970.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError)?;
        if !rest.is_empty() {
            return Err(CertificateError);
        }
        let names = parsed.subject_alternative_name().map_err(|_| CertificateError)?;
        let names = names.map(|names| names.value.general_names.iter()).into_iter().flatten();
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
        let common = |name: &x509_parser::x509::X509Name<'_>| {
            let name = name.iter_common_name().next().and_then(|name| name.as_str().ok());
            name.unwrap_or_default().to_owned()
        };
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).map_err(|_| CertificateError)?;
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        };
        Ok(Self {
            names: names.collect(),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            issuer: common(parsed.issuer()),
            subject: common(parsed.subject()),
            is_ca: parsed.is_ca(),
        })
    }

    /// The identity it proves: its first DNS or URI name.
    pub fn id(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// Whether this exact name stands in it. Wildcards match nothing.
    pub fn proves(&self, id: &str) -> bool {
        self.names.iter().any(|name| name == id)
    }

    /// How long it is valid in all.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// The first certificate of a chain that a peer proved to have the key of.
pub(crate) fn leaf(chain: Option<&[CertificateDer<'_>]>) -> Option<Certificate> {
    Certificate::read(chain?.first()?).ok()
}
