//! `meshctl tap`: requests as they happen, seen by the proxies of the workloads asked for.
//!
//! [`filter`] says which requests, [`stream`] follows them and tells on stderr how that goes; [`line`](mod@line),
//! [`event`] and [`har`] are the ways to write one down.

pub(crate) mod event;
pub(crate) mod filter;
mod har;
pub(crate) mod line;
pub(crate) mod stream;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext::mesh_tap_event::Tapped;

use crate::context::Context;
use crate::error::CliError;
use crate::output::{Format, format};
use crate::units;

use self::filter::FilterArgs;
use self::stream::{End, Limits, Seen, Tap};

/// Show live requests, one line each
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct TapArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Stop after this many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after this time
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub duration: Option<Duration>,
    /// Include headers (json); credentials are redacted
    #[arg(long)]
    pub headers: bool,
    /// Don't redact credentials in headers
    #[arg(long, requires = "headers")]
    pub show_secrets: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "har"]))]
    pub output: Format,
}

const HELP: &str = "\
meshctl tap deploy/web --status 5xx                        what fails
meshctl tap deploy/web --direction out --to svc/tax        what it sends there
meshctl tap deploy --count 100 -o har > requests.har       for other programs

A line is: time, direction (in: the proxy before the server, out: the one behind the \
client), source → destination, request, status, latency, size of the response, and whether \
the hop was secured (tls or plain). A reason code after the status means that the mesh \
itself failed the request: meshctl explain CODE. wide has, among other things, the policy \
that let the request in or refused it. TCP connections are shown when a policy refuses them.

JSON is one event a line: {started, proxyDirection, pod, namespace, source, destination {ip, \
port, pod, namespace}, requestInit {id, method, scheme, authority, path, headers}, \
responseInit {sinceRequestInit, httpStatus, headers}, responseEnd {sinceRequestInit, \
sinceResponseInit, responseBytes, grpcStatusCode}, parent, route, backend, reason, attempts, \
requestBytes, latencyMs, tls, policy, skipped}. Durations are {seconds, nanos}. HAR is one HTTP \
archive, complete when the command ends.";

pub(super) async fn run(args: TapArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let har = args.output == Format::Har;
    let request = args.filter.request(args.headers || har, args.show_secrets)?;
    let mesh = cx.connect().await?;
    let limits = Limits { count: args.count, duration: args.duration };
    let mut tap = Tap::start(&mesh, request, limits, cx).await?;
    let mut writer = Writer { output: args.output, written: 0 };
    cx.ui.print(writer.head())?;
    let end = loop {
        match tap.next(cx).await? {
            Seen::Request(tapped) => cx.ui.print(&writer.write(&tapped, cx)?)?,
            Seen::End(end) => break end,
        }
    };
    cx.ui.print(writer.tail())?;
    cx.ui.note(&tap.summary());
    match end {
        End::Done => Ok(ExitCode::SUCCESS),
        End::Interrupted => Err(CliError::interrupted()),
    }
}

/// Writes events in the format asked for.
struct Writer {
    output: Format,
    written: u64,
}

impl Writer {
    fn head(&self) -> &'static str {
        if self.output == Format::Har { har::HEAD } else { "" }
    }

    fn tail(&self) -> &'static str {
        if self.output == Format::Har { har::TAIL } else { "" }
    }

    fn write(&mut self, tapped: &Tapped, cx: &Context) -> Result<String, CliError> {
        self.written += 1;
        match self.output {
            Format::Json => format::json_line(&event::Event::new(tapped)),
            Format::Har => {
                let entry = format::json(&har::Entry::new(tapped))?;
                Ok(if self.written == 1 { entry } else { format!(",{entry}") })
            }
            wanted => Ok(line::line(tapped, wanted == Format::Wide, &cx.zone, cx.ui.out_style)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
