//! The annotations `config.meshctl.dev/*` that say how a pod's proxy is set up.
//!
//! The same names without the prefix are keys of the ConfigMap `mesh-config`. A value that makes no
//! sense is reported and left out: no pod fails to start because of it.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_model::inbound::Cidr;
use tracing_subscriber::EnvFilter;

use super::INJECT;
use crate::source::Finding;
use crate::source::annotations::{Annotations, PREFIX, nearest_name};
use crate::source::kubernetes::PROXY_VERSION_ANNOTATION;

/// What can be set, and what values it has.
struct Known {
    name: &'static str,
    wanted: &'static str,
    /// The value as it is used; `None` when it makes no sense.
    parse: fn(&str) -> Option<String>,
}

pub const IMAGE: &str = "proxy-image";
pub const PULL_POLICY: &str = "proxy-image-pull-policy";
pub const CPU_REQUEST: &str = "proxy-cpu-request";
pub const CPU_LIMIT: &str = "proxy-cpu-limit";
pub const MEMORY_REQUEST: &str = "proxy-memory-request";
pub const MEMORY_LIMIT: &str = "proxy-memory-limit";
pub const LOG_LEVEL: &str = "proxy-log-level";
pub const LOG_FORMAT: &str = "proxy-log-format";
pub(super) const ACCESS_LOG: &str = "access-log";
pub(super) const THREADS: &str = "threads";
pub(super) const SHUTDOWN_GRACE: &str = "shutdown-grace";
pub const NATIVE_SIDECAR: &str = "native-sidecar";
pub const SKIP_INBOUND: &str = "skip-inbound-ports";
pub const SKIP_OUTBOUND: &str = "skip-outbound-ports";
pub const SKIP_SUBNETS: &str = "skip-subnets";

const QUANTITY: &str = "a quantity such as `100m` or `64Mi`";
const PORTS: &str = "ports and ranges such as `3306,9000-9010`";

const KNOWN: [Known; 15] = [
    Known { name: IMAGE, wanted: "an image such as `registry/name:tag`", parse: image },
    Known {
        name: PULL_POLICY,
        wanted: "one of Always, IfNotPresent, Never",
        parse: |text| one_of(text, &["Always", "IfNotPresent", "Never"]),
    },
    Known { name: CPU_REQUEST, wanted: QUANTITY, parse: quantity },
    Known { name: CPU_LIMIT, wanted: QUANTITY, parse: quantity },
    Known { name: MEMORY_REQUEST, wanted: QUANTITY, parse: quantity },
    Known { name: MEMORY_LIMIT, wanted: QUANTITY, parse: quantity },
    Known {
        name: LOG_LEVEL,
        wanted: "a level such as `info` or `target=level,…`",
        parse: log_level,
    },
    Known {
        name: LOG_FORMAT,
        wanted: "one of plain, json",
        parse: |text| one_of(text, &["plain", "json"]),
    },
    Known {
        name: ACCESS_LOG,
        wanted: "one of off, common, json",
        parse: |text| one_of(text, &["off", "common", "json"]),
    },
    Known { name: THREADS, wanted: "a whole number from 1 to 1024", parse: threads },
    Known {
        name: SHUTDOWN_GRACE,
        wanted: "a duration such as `500ms`, `30s` or `2m`",
        parse: |text| duration(text).map(|_| text.to_owned()),
    },
    Known {
        name: NATIVE_SIDECAR,
        wanted: "one of enabled, disabled",
        parse: |text| one_of(text, &["enabled", "disabled"]),
    },
    Known { name: SKIP_INBOUND, wanted: PORTS, parse: ports },
    Known { name: SKIP_OUTBOUND, wanted: PORTS, parse: ports },
    Known { name: SKIP_SUBNETS, wanted: "networks such as `10.0.0.0/8,fd00::/8`", parse: subnets },
];

/// Names of all annotations that are read here, without prefix.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

/// How a proxy is set up, by the names of annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    values: BTreeMap<&'static str, String>,
}

impl Default for Options {
    fn default() -> Self {
        let image = concat!("ghcr.io/meshctl/mesh-proxy:", env!("CARGO_PKG_VERSION"));
        let values = [
            (IMAGE, image),
            (PULL_POLICY, "IfNotPresent"),
            (CPU_REQUEST, "10m"),
            (MEMORY_REQUEST, "20Mi"),
            (MEMORY_LIMIT, "128Mi"),
            (LOG_LEVEL, "info"),
            (NATIVE_SIDECAR, "enabled"),
        ];
        Self { values: values.map(|(name, value)| (name, value.to_owned())).into() }
    }
}

impl Options {
    /// The value of an option, if it has one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Takes what the annotations say, and reports what is wrong with any of the mesh's.
    pub fn take(&mut self, annotations: &BTreeMap<String, String>, findings: &mut Vec<Finding>) {
        // Those that the control plane reads by itself are looked at for their mistakes only.
        let mut others = Annotations::new(Some(annotations));
        others.opaque_ports();
        others.default_access();
        findings.append(&mut others.findings);
        let plain = annotations.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(PREFIX)?;
            names().any(|known| known == name).then(|| (name.to_owned(), value.clone()))
        });
        self.read(
            &plain.collect(),
            |name| format!("metadata.annotations[{PREFIX}{name}]"),
            findings,
        );
        let misplaced = |key: &&String| {
            key.starts_with("meshctl.dev/")
                && ![INJECT, PROXY_VERSION_ANNOTATION].contains(&key.as_str())
        };
        for key in annotations.keys().filter(misplaced) {
            let name = key.trim_start_matches("meshctl.dev/");
            let meant = if names().any(|known| known == name) {
                format!("{PREFIX}{name}")
            } else {
                INJECT.to_owned()
            };
            let message = format!("no such annotation; the nearest is {meant}");
            findings.push(Finding::warning(format!("metadata.annotations[{key}]"), message));
        }
    }

    /// As [`Self::take`], by names without prefix.
    pub fn take_plain(&mut self, values: &BTreeMap<String, String>, findings: &mut Vec<Finding>) {
        for key in values.keys().filter(|key| names().all(|known| known != *key)) {
            let message = format!("no such setting; the nearest is {}", nearest_name(key, names()));
            findings.push(Finding::warning(key, message));
        }
        self.read(values, str::to_owned, findings);
    }

    fn read(
        &mut self,
        values: &BTreeMap<String, String>,
        field: impl Fn(&str) -> String,
        findings: &mut Vec<Finding>,
    ) {
        for known in &KNOWN {
            let Some(text) = values.get(known.name).map(|text| text.trim()) else { continue };
            if let Some(value) = (known.parse)(text) {
                self.values.insert(known.name, value);
            } else {
                let shown: String = text.chars().take(MAX_SHOWN).collect();
                let message = format!("`{shown}` is not {} and is left out", known.wanted);
                findings.push(Finding::warning(field(known.name), message));
            }
        }
    }

    /// A request above its limit makes a pod that no API server accepts: the limit is raised.
    pub(super) fn reconcile(&mut self, findings: &mut Vec<Finding>) {
        for (request, limit) in [(CPU_REQUEST, CPU_LIMIT), (MEMORY_REQUEST, MEMORY_LIMIT)] {
            let (Some(wanted), Some(most)) = (self.get(request), self.get(limit)) else { continue };
            let exceeds =
                amount(wanted).zip(amount(most)).is_some_and(|(wanted, most)| wanted > most);
            if exceeds {
                let message = format!("{most} is below {PREFIX}{request}, {wanted}, which applies");
                findings.push(Finding::warning(
                    format!("metadata.annotations[{PREFIX}{limit}]"),
                    message,
                ));
                self.values.insert(limit, wanted.to_owned());
            }
        }
    }

    pub(super) fn native_sidecar(&self) -> bool {
        self.get(NATIVE_SIDECAR) != Some("disabled")
    }

    pub(super) fn shutdown_grace(&self) -> Option<Duration> {
        duration(self.get(SHUTDOWN_GRACE)?)
    }
}

/// Characters of a wrong value that are told.
const MAX_SHOWN: usize = 60;
/// Of a value; an image with its digest is shorter.
const MAX_VALUE: usize = 512;

fn one_of(text: &str, allowed: &[&str]) -> Option<String> {
    allowed.contains(&text).then(|| text.to_owned())
}

fn image(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "./:@-_[]".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    (begins && text.len() <= MAX_VALUE && text.chars().all(allowed)).then(|| text.to_owned())
}

/// A quantity of Kubernetes, above zero; nothing is no limit.
fn quantity(text: &str) -> Option<String> {
    (text.is_empty() || amount(text).is_some_and(|amount| amount > 0.0)).then(|| text.to_owned())
}

/// What a quantity is worth, in units.
fn amount(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let found =
        SUFFIXES.iter().find_map(|(suffix, worth)| Some((text.strip_suffix(suffix)?, *worth)));
    let (digits, worth) = found.unwrap_or((text, 1.0));
    let plain = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.len() <= 20
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    plain.then(|| digits.parse::<f64>().ok()).flatten().map(|number| number * worth)
}

fn log_level(text: &str) -> Option<String> {
    let sound = !text.is_empty() && text.len() <= MAX_VALUE && !text.contains('$');
    (sound && EnvFilter::try_new(text).is_ok()).then(|| text.to_owned())
}

fn threads(text: &str) -> Option<String> {
    let number = text.parse::<u16>().ok().filter(|number| (1..=1024).contains(number));
    number.map(|number| number.to_string())
}

fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(amount)),
        "s" => Some(Duration::from_secs(amount)),
        "m" => amount.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

/// Without blanks, as the init container reads them.
fn ports(text: &str) -> Option<String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let ranges = items.map(|item| match item.split_once('-') {
        None => Some(port(item)?.to_string()),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then(|| format!("{first}-{last}"))
        }
    });
    let ranges: Vec<String> = ranges.collect::<Option<_>>()?;
    (ranges.len() <= MAX_ITEMS).then(|| ranges.join(","))
}

fn subnets(text: &str) -> Option<String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    let sound = items.len() <= MAX_ITEMS && items.iter().all(|item| item.parse::<Cidr>().is_ok());
    sound.then(|| items.join(","))
}

/// Ports or networks of one annotation.
const MAX_ITEMS: usize = 256;
