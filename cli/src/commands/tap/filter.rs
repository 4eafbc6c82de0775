//! Which requests are meant, for `tap` and `top`.

use clap::{Args, ValueEnum};
use mesh_api::ext;
use mesh_model::Reason;

use crate::completing;
use crate::error::CliError;
use crate::selector::{Scope, Selectors};

#[derive(Args, Clone, Debug)]
pub struct FilterArgs {
    /// Whose requests: TYPE, TYPE/NAME or TYPE NAME, several of them
    #[arg(required = true, value_name = "RESOURCE", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Only requests to this resource
    #[arg(long, value_name = "RESOURCE", help_heading = "Filters", add = completing::resources())]
    pub to: Option<String>,
    /// Only requests with this method
    #[arg(long, value_name = "METHOD", help_heading = "Filters")]
    pub method: Option<String>,
    /// Only paths that begin with this
    #[arg(long, value_name = "PREFIX", help_heading = "Filters")]
    pub path: Option<String>,
    /// Only requests to this authority (Host)
    #[arg(long, value_name = "HOST", help_heading = "Filters")]
    pub authority: Option<String>,
    /// Only requests that have this header; may be repeated
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Filters", value_parser = header)]
    pub header: Vec<(String, String)>,
    /// Only responses with this status (503) or class (5xx)
    #[arg(long, value_name = "STATUS", help_heading = "Filters", value_parser = status)]
    pub status: Option<String>,
    /// Only what the mesh failed for this reason, such as unauthorized
    #[arg(long, value_name = "CODE", help_heading = "Filters", value_parser = reason)]
    pub reason: Option<String>,
    /// Only what the workload receives (in) or sends (out)
    #[arg(long, value_enum, value_name = "DIRECTION", help_heading = "Filters")]
    pub direction: Option<Direction>,
    /// At most this many requests a second; how many were left out is told
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Filters",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_rps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    In,
    Out,
}

impl FilterArgs {
    /// The request to the control plane.
    pub(crate) fn request(
        &self,
        with_headers: bool,
        show_secrets: bool,
    ) -> Result<ext::MeshTapRequest, CliError> {
        let selectors = Selectors::parse(&self.resources, &self.scope)?;
        let to = self.to.as_ref().map(|to| Selectors::parse_one(to, &self.scope)).transpose()?;
        let direction = match self.direction {
            None => ext::Direction::Unspecified,
            Some(Direction::In) => ext::Direction::Inbound,
            Some(Direction::Out) => ext::Direction::Outbound,
        };
        let headers = self.header.iter().cloned().map(|(name, value)| ext::Header { name, value });
        let filter = ext::TapFilter {
            direction: direction.into(),
            method: self.method.clone().unwrap_or_default(),
            path: self.path.clone().unwrap_or_default(),
            authority: self.authority.clone().unwrap_or_default(),
            status: self.status.clone().unwrap_or_default(),
            peers: Vec::new(),
            headers: headers.collect(),
            with_headers,
            show_secrets,
            reason: self.reason.clone().unwrap_or_default(),
        };
        Ok(ext::MeshTapRequest {
            selectors: selectors.0,
            filter: Some(filter),
            max_rps: self.max_rps,
            to,
        })
    }
}

/// `NAME=VALUE`, or as curl writes it: `NAME: VALUE`.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once([':', '='])
        .ok_or_else(|| format!("\"{text}\" is not a header; write NAME=VALUE"))?;
    let name = http::HeaderName::try_from(name.trim())
        .map_err(|_| format!("\"{name}\" can't name a header"))?;
    Ok((name.to_string(), value.trim().to_owned()))
}

fn status(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let sound = match lower.as_bytes() {
        [class @ b'1'..=b'5', b'x', b'x'] => class.is_ascii_digit(),
        [b'1'..=b'5', rest @ ..] => rest.len() == 2 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if sound { Ok(lower) } else { Err(format!("\"{text}\" is not a status; write 503 or 5xx")) }
}

fn reason(text: &str) -> Result<String, String> {
    match Reason::from_code(text) {
        Some(reason) => Ok(reason.code().to_owned()),
        None => Err(format!("\"{text}\" is no reason code; meshctl explain lists them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_both_spellings() {
        let want = Ok(("x-user".to_owned(), "7".to_owned()));
        assert_eq!(header("X-User=7"), want);
        assert_eq!(header("x-user: 7"), want);
        assert!(header("x-user").is_err() && header(" =7").is_err());
    }

    #[test]
    fn a_status_is_a_number_or_a_class() {
        assert_eq!(status("5XX").as_deref(), Ok("5xx"));
        assert_eq!(status("404").as_deref(), Ok("404"));
        for bad in ["6xx", "50", "5x", "abc", "5x3", "0xx", ""] {
            assert!(status(bad).is_err(), "{bad}");
        }
    }
}
