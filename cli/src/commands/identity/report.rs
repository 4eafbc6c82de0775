//! Who the pods are, for people and for programs.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use mesh_api::ext;
use mesh_tls::{Certificate, Id, WorkloadId};
use serde::Serialize;

use super::life::{Life, seconds};
use crate::error::CliError;
use crate::local::authority::{Authority, Root};
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Style, Table, clean};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    authority: Option<Issuing>,
    proxies: Vec<Proxy>,
    #[serde(skip)]
    now: u64,
}

/// Who certifies.
#[derive(Debug, Serialize)]
struct Issuing {
    issuer: Issuer,
    roots: Vec<Trusted>,
}

#[derive(Debug, Serialize)]
struct Issuer {
    subject: String,
    serial: String,
    /// The root that signed it.
    issuer: String,
    not_before: u64,
    not_after: u64,
    #[serde(skip)]
    life: Life,
}

#[derive(Debug, Serialize)]
struct Trusted {
    fingerprint: String,
    subject: String,
    not_before: u64,
    not_after: u64,
    /// Proxies of those shown.
    trusted_by: usize,
    #[serde(skip)]
    life: Life,
}

#[derive(Debug, Serialize)]
struct Proxy {
    namespace: String,
    pod: String,
    reachable: bool,
    error: Option<String>,
    id: Option<String>,
    certificate: Option<InUse>,
    roots: Vec<String>,
    renewals: u64,
    failures: u64,
    last_error: Option<String>,
}

#[derive(Debug, Serialize)]
struct InUse {
    serial: String,
    issuer: String,
    not_before: u64,
    not_after: u64,
    left: f64,
    #[serde(skip)]
    life: Life,
}

impl Report {
    pub(super) fn new(
        rows: Vec<ext::ProxyRow>,
        authority: Option<&Authority>,
        now: u64,
    ) -> Result<Self, CliError> {
        let mut proxies: Vec<Proxy> = rows.into_iter().map(|row| Proxy::new(row, now)).collect();
        proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        let issuing = |authority: &Authority| {
            let roots = authority.roots()?;
            let roots = roots.iter().map(|root| Trusted::new(root, &proxies)).collect();
            let issuer = Issuer::new(authority.issuer()?.certificate());
            Ok::<_, CliError>(Issuing { issuer, roots })
        };
        let authority = authority.map(issuing).transpose()?;
        Ok(Self { authority, proxies, now })
    }

    /// Whether no proxy that answers has an identity.
    pub(super) fn is_without_identity(&self) -> bool {
        let mut answered = self.proxies.iter().filter(|proxy| proxy.reachable).peekable();
        answered.peek().is_some() && answered.all(|proxy| proxy.id.is_none())
    }

    pub(super) fn text(&self, wide: bool, zone: &TimeZone, style: Style) -> String {
        let mut tables = vec![self.proxies(wide, zone).render(style)];
        if let Some(authority) = &self.authority {
            tables.push(authority.table(self.proxies.len(), self.now, zone).render(style));
        }
        tables.join("\n")
    }

    /// What the tables have no place for.
    pub(super) fn notes(&self) -> Vec<String> {
        let told = self.proxies.iter().filter_map(|proxy| {
            let (what, why) = match (&proxy.error, &proxy.last_error) {
                (Some(error), _) => ("not reachable", error),
                (None, Some(error)) => ("not renewed", error),
                (None, None) => return None,
            };
            Some(format!("{what}: {}/{}: {}", proxy.namespace, proxy.pod, clean(why)))
        });
        told.collect()
    }

    fn proxies(&self, wide: bool, zone: &TimeZone) -> Table {
        let known: BTreeSet<&str> = self.proxies.iter().map(|p| p.namespace.as_str()).collect();
        let namespaces = known.len() > 1;
        let mut columns = Vec::new();
        columns.extend(namespaces.then_some(Column::left("NAMESPACE")));
        columns.push(Column::left("POD"));
        columns.push(Column::left(if wide { "IDENTITY" } else { "ACCOUNT" }));
        columns.push(Column::left("ISSUER"));
        if wide {
            columns.extend(["SERIAL", "VALID_FROM"].map(Column::left));
        }
        columns.push(Column::left("VALID_UNTIL"));
        columns.extend(["LEFT", "ROOTS"].map(Column::right));
        if wide {
            columns.extend(["RENEWALS", "FAILURES"].map(Column::right));
        }
        let mut table = Table::new(columns);
        for proxy in &self.proxies {
            let mut cells = Vec::new();
            cells.extend(namespaces.then(|| Cell::from(proxy.namespace.as_str())));
            cells.push(Cell::from(proxy.pod.as_str()));
            cells.extend(self.cells(proxy, wide, zone));
            table.row(cells);
        }
        table
    }

    fn cells(&self, proxy: &Proxy, wide: bool, zone: &TimeZone) -> Vec<Cell> {
        let certificate = proxy.certificate.as_ref();
        let id = proxy.id.as_deref().map(|id| if wide { id.to_owned() } else { account(id) });
        let mut cells = vec![
            optional(id, |id| id),
            optional(certificate, |certificate| certificate.issuer.clone()),
        ];
        if wide {
            cells.push(optional(certificate, |certificate| certificate.serial.clone()));
            cells.push(optional(certificate, |certificate| certificate.life.begin(zone)));
        }
        cells.push(optional(certificate, |certificate| certificate.life.end(zone)));
        cells.push(certificate.map_or_else(Cell::missing, |certificate| {
            Cell::from(certificate.life.left(self.now)).tone(tone(certificate.life, self.now))
        }));
        cells.push(optional(certificate, |_| proxy.roots.len().to_string()));
        if wide {
            cells.push(optional(proxy.id.as_ref(), |_| proxy.renewals.to_string()));
            cells.push(optional(proxy.id.as_ref(), |_| proxy.failures.to_string()));
        }
        cells
    }
}

impl Issuing {
    fn table(&self, proxies: usize, now: u64, zone: &TimeZone) -> Table {
        let columns = ["AUTHORITY", "SHA-256", "VALID_UNTIL"].map(Column::left);
        let numbers = ["LEFT", "TRUSTED_BY"].map(Column::right);
        let mut table = Table::new([columns.as_slice(), &numbers].concat());
        let life = self.issuer.life;
        table.row([
            Cell::from(self.issuer.subject.as_str()),
            Cell::missing(),
            Cell::from(life.end(zone)),
            Cell::from(life.left(now)).tone(tone(life, now)),
        ]);
        for root in &self.roots {
            table.row([
                Cell::from(root.subject.as_str()),
                Cell::from(root.fingerprint.chars().take(SHORT).collect::<String>()),
                Cell::from(root.life.end(zone)),
                Cell::from(root.life.left(now)).tone(tone(root.life, now)),
                Cell::from(format!("{} of {proxies}", root.trusted_by)),
            ]);
        }
        table
    }
}

/// Digits of a fingerprint that tell roots apart.
const SHORT: usize = 16;

fn tone(life: Life, now: u64) -> Tone {
    match () {
        () if life.has_ended(now) => Tone::Bad,
        () if life.is_late(now) => Tone::Warn,
        () => Tone::Plain,
    }
}

/// `web.shop` of an identity that has these parts, else all of it.
pub(crate) fn account(id: &str) -> String {
    let parts = id.parse::<Id>().ok().and_then(|id| WorkloadId::of(&id));
    parts.map_or_else(|| id.to_owned(), |of| format!("{}.{}", of.service_account, of.namespace))
}

impl Issuer {
    fn new(certificate: &Certificate) -> Self {
        Self {
            subject: certificate.subject.clone(),
            serial: certificate.serial.clone(),
            issuer: certificate.issuer.clone(),
            not_before: seconds(certificate.not_before),
            not_after: seconds(certificate.not_after),
            life: certificate.into(),
        }
    }
}

impl Trusted {
    fn new(root: &Root, proxies: &[Proxy]) -> Self {
        let trusts = |proxy: &&Proxy| proxy.roots.contains(&root.fingerprint);
        Self {
            fingerprint: root.fingerprint.clone(),
            subject: root.certificate.subject.clone(),
            not_before: seconds(root.certificate.not_before),
            not_after: seconds(root.certificate.not_after),
            trusted_by: proxies.iter().filter(trusts).count(),
            life: (&root.certificate).into(),
        }
    }
}

impl Proxy {
    fn new(row: ext::ProxyRow, now: u64) -> Self {
        let identity = row.identity.unwrap_or_default();
        let certificate = identity.certificate.map(|certificate| {
            let life = Life::from(&certificate);
            InUse {
                serial: certificate.serial,
                issuer: certificate.issuer,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
                left: life.share(now),
                life,
            }
        });
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            namespace: row.namespace,
            pod: row.pod,
            reachable: row.reachable,
            error: some(row.error),
            id: some(identity.id),
            certificate,
            roots: identity.roots,
            renewals: identity.renewals,
            failures: identity.failures,
            last_error: some(identity.last_error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateRoot;
    use crate::testing::{FakeMesh, golden, proxy_row};

    const NOW: u64 = 1_800_000_000;
    const HOUR: u64 = 3_600;

    fn certified(pod: &str, from: u64, until: u64, roots: &[&str]) -> ext::ProxyRow {
        let account = pod.split('-').next().unwrap();
        ext::ProxyRow {
            identity: Some(ext::ProxyIdentity {
                id: format!("{account}.shop.serviceaccount.identity.mesh-system.cluster.local"),
                certificate: Some(ext::ProxyCertificate {
                    serial: "00a1b2c3".into(),
                    issuer: "mesh 5d1f2a90 issuer".into(),
                    not_before: from,
                    not_after: until,
                }),
                roots: roots.iter().map(|root| (*root).to_owned()).collect(),
                renewals: 3,
                ..Default::default()
            }),
            ..proxy_row(pod)
        }
    }

    fn rows() -> Vec<ext::ProxyRow> {
        let mut refused = certified("tax-1", NOW - 20 * HOUR, NOW + 4 * HOUR, &["aa"]);
        let identity = refused.identity.as_mut().unwrap();
        (identity.failures, identity.last_error) = (7, "the token is <malformed>".into());
        let mut new = proxy_row("new-1");
        new.identity = Some(ext::ProxyIdentity { certificate: None, ..identity.clone() });
        let mut lost = proxy_row("cart-1");
        (lost.reachable, lost.error) = (false, "connection refused".into());
        vec![
            certified("web-1", NOW - 6 * HOUR, NOW + 18 * HOUR, &["aa", "bb"]),
            certified("web-2", NOW - 24 * HOUR, NOW - HOUR, &["aa"]),
            refused,
            new,
            lost,
            ext::ProxyRow { namespace: "bank".into(), ..proxy_row("plain-1") },
        ]
    }

    #[test]
    fn tables_and_documents() {
        let report = Report::new(rows(), None, NOW).unwrap();
        let text = |wide| report.text(wide, &TimeZone::UTC, Style::default());
        golden("identity.txt", &text(false));
        golden("identity-wide.txt", &text(true));
        golden("identity.json", &crate::output::format::json(&report).unwrap());
        let notes = report.notes();
        assert_eq!(notes[0], "not reachable: shop/cart-1: connection refused");
        assert_eq!(notes[2], "not renewed: shop/tax-1: the token is <malformed>");
    }

    #[test]
    fn roots_are_told_with_how_many_trust_them() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("default").unwrap();
        std::fs::create_dir(&dir.path).unwrap();
        let authority = Authority::create(&dir).unwrap();
        let root = authority.roots().unwrap().remove(0);
        let trusting = certified("web-1", NOW, NOW + HOUR, &[&root.fingerprint]);
        let rows = vec![trusting, certified("web-2", NOW, NOW + HOUR, &["aa"])];
        let now = seconds(root.certificate.not_before);
        let text = Report::new(rows, Some(&authority), now).unwrap();
        let text = text.text(false, &TimeZone::UTC, Style::default());
        let line = text.lines().last().unwrap();
        assert!(line.starts_with(&root.certificate.subject), "{text}");
        assert!(line.contains(&root.fingerprint[..SHORT]), "{text}");
        assert!(line.contains("3650d (100%)") && line.ends_with("1 of 2"), "{text}");
        assert!(text.contains("365d (100%)"), "{text}");
    }

    #[tokio::test]
    async fn a_mesh_without_identity_says_so() {
        let mesh = FakeMesh { proxies: vec![proxy_row("web-1")], ..FakeMesh::default() };
        let ran = mesh.clone().run("identity").await;
        assert!(ran.err.starts_with("the pods of this mesh have no identity"), "{}", ran.err);
        let ran = mesh.run("identity -o json").await;
        let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(told["authority"], serde_json::Value::Null);
        assert_eq!(told["proxies"][0]["id"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn a_pod_is_named_as_elsewhere() {
        let mesh = FakeMesh::default();
        let error = mesh.clone().run("identity shop/gone-1").await.result.unwrap_err();
        assert_eq!(error.message, "there is no pod/gone-1 in shop");
        let error = mesh.run("identity rotate").await.result.unwrap_err();
        assert!(error.message.contains("has no identity"), "{error}");
    }
}
