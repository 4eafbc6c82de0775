//! `mesh-proxy init-redirect`: prepares a pod's network before its containers start, so that its
//! connections go through the proxy. The rules are those of `mesh_redirect`; here are the arguments.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

use mesh_redirect::Redirect;

/// The argument that asks for it.
pub(crate) const NAME: &str = "init-redirect";

const USAGE: &str = "\
Usage: mesh-proxy
       mesh-proxy init-redirect --proxy-uid UID [OPTIONS]
       mesh-proxy init-redirect --uninstall

Without arguments it runs the proxy, which the variables MESH_PROXY_* configure. With init-redirect it
leads the TCP connections of this network namespace through the proxy, by the table `inet mesh` of
nf_tables. That needs the capability NET_ADMIN; running it again replaces the table.

  --proxy-uid UID             the user the proxy runs as, whose connections are left alone
  --inbound-port PORT         where the proxy takes connections to the pod [4143]
  --outbound-port PORT        where the proxy takes connections from the pod [4140]
  --skip-inbound-ports LIST   ports of the pod that are reached directly, such as 22,8000-8010
  --skip-outbound-ports LIST  ports that are reached directly, wherever they are
  --skip-subnets LIST         destinations that are reached directly, such as 10.0.0.0/8,fd00::/8
  --dry-run                   print the table in nft's syntax, change nothing
  --uninstall                 remove the table
  --help                      print this
";

/// What the arguments ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Install(Redirect),
    Print(Redirect),
    Uninstall,
    Help,
}

/// Exits with 0 when it is done, 1 when it could not be done, 2 for arguments that make no sense.
pub(crate) fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let asked = match parse(args) {
        Ok(asked) => asked,
        Err(message) => return usage_error(&message),
    };
    let done = match asked {
        Asked::Install(redirect) => mesh_redirect::install(&redirect).map_err(|e| e.to_string()),
        Asked::Uninstall => mesh_redirect::uninstall().map_err(|e| e.to_string()),
        Asked::Print(redirect) => match redirect.table() {
            Ok(table) => print(&table),
            Err(error) => Err(error.to_string()),
        },
        Asked::Help => print(&USAGE),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message, ExitCode::FAILURE),
    }
}

/// The program was called with an argument that is none of its.
pub(crate) fn unknown(arg: &str) -> ExitCode {
    if arg == "--help" { main([arg.to_owned()].into_iter()) } else { usage_error(&no_such(arg)) }
}

fn usage_error(message: &str) -> ExitCode {
    fail(&format!("{message}; see mesh-proxy {NAME} --help"), ExitCode::from(2))
}

fn no_such(arg: &str) -> String {
    format!("there is no argument `{arg}`")
}

fn print(text: &dyn Display) -> Result<(), String> {
    write!(std::io::stdout(), "{text}").map_err(|error| format!("cannot print: {error}"))
}

#[expect(clippy::print_stderr, reason = "nobody has set up a logger in this mode")]
fn fail(message: &str, code: ExitCode) -> ExitCode {
    eprintln!("mesh-proxy: {message}");
    code
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut proxy_uid = None;
    let (mut inbound_port, mut outbound_port) = (4143, 4140);
    let (mut skip_inbound_ports, mut skip_outbound_ports) = (Vec::new(), Vec::new());
    let mut skip_subnets = Vec::new();
    let (mut dry_run, mut uninstall) = (false, false);
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let mut value = || {
            let value = inline.clone().or_else(|| args.next());
            value.ok_or_else(|| format!("{name} needs a value"))
        };
        match name {
            "--proxy-uid" => proxy_uid = Some(one(name, &value()?)?),
            "--inbound-port" => inbound_port = port(name, &value()?)?,
            "--outbound-port" => outbound_port = port(name, &value()?)?,
            "--skip-inbound-ports" => skip_inbound_ports = list(name, &value()?)?,
            "--skip-outbound-ports" => skip_outbound_ports = list(name, &value()?)?,
            "--skip-subnets" => skip_subnets = list(name, &value()?)?,
            "--dry-run" if inline.is_none() => dry_run = true,
            "--uninstall" if inline.is_none() => uninstall = true,
            "--help" | "-h" if inline.is_none() => return Ok(Asked::Help),
            _ => return Err(no_such(&arg)),
        }
    }
    if uninstall {
        return Ok(Asked::Uninstall);
    }
    let proxy_uid = proxy_uid.ok_or(
        "--proxy-uid is missing: without it the proxy's own connections would come back to it",
    )?;
    if proxy_uid == 0 {
        return Err("--proxy-uid 0: what root sends must not bypass the proxy".to_owned());
    }
    let redirect = Redirect {
        proxy_uid,
        inbound_port,
        outbound_port,
        skip_inbound_ports,
        skip_outbound_ports,
        skip_subnets,
    };
    Ok(if dry_run { Asked::Print(redirect) } else { Asked::Install(redirect) })
}

fn one<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{name} {value}: {error}"))
}

fn port(name: &str, value: &str) -> Result<u16, String> {
    let port = one(name, value)?;
    if port == 0 { Err(format!("{name} 0: connections cannot be led there")) } else { Ok(port) }
}

/// Parts between commas; an empty list is one, as templates write them.
fn list<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<Vec<T>, String> {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|error| format!("{name}: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_make_a_redirect() {
        let line = "--proxy-uid 2102 --inbound-port=1 --outbound-port 2 \
            --skip-inbound-ports 22,8000-8010 --skip-outbound-ports= --skip-subnets 10.0.0.0/8,fd00::/8";
        let expected = Redirect {
            proxy_uid: 2102,
            inbound_port: 1,
            outbound_port: 2,
            skip_inbound_ports: vec!["22".parse().unwrap(), "8000-8010".parse().unwrap()],
            skip_outbound_ports: Vec::new(),
            skip_subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        };
        assert_eq!(parsed(line), Ok(Asked::Install(expected.clone())));
        assert_eq!(parsed(&format!("{line} --dry-run")), Ok(Asked::Print(expected)));
        assert_eq!(parsed("--uninstall"), Ok(Asked::Uninstall));
        let Ok(Asked::Install(least)) = parsed("--proxy-uid 2102") else { panic!() };
        assert_eq!((least.inbound_port, least.outbound_port), (4143, 4140));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, told) in [
            ("", "--proxy-uid is missing"),
            ("--proxy-uid", "--proxy-uid needs a value"),
            ("--proxy-uid x", "--proxy-uid x: invalid digit"),
            ("--proxy-uid 0", "root"),
            ("--proxy-uid 1 --inbound-port 0", "--inbound-port 0"),
            ("--proxy-uid 1 --skip-inbound-ports 22,99999", "--skip-inbound-ports: `99999`"),
            ("--proxy-uid 1 --skip-subnets 10.0.0.0/40", "--skip-subnets: `10.0.0.0/40`"),
            ("--proxy-uid 1 --dry-run=yes", "`--dry-run=yes`"),
            ("--proxy-uid 1 eth0", "`eth0`"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(told), "{line}: {error}");
        }
    }
}
