//! The proxy that asks, as it introduces itself to the control plane.

use std::fmt;

/// No name in Kubernetes is longer, bytes.
const MAX_NAME: usize = 253;

/// A pod, named in every request of its proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Workload {
    #[serde(rename = "ns")]
    pub namespace: String,
    #[serde(default)]
    pub pod: String,
}

impl Workload {
    /// The form on the wire, `{"ns":"…","pod":"…"}`, which foreign control planes read, too.
    pub fn encode(&self) -> String {
        // `{:?}` of a string is not JSON for control characters, so serde it is. Two strings
        // cannot fail to serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads that form, and the older `ns:pod` and `ns/pod`. `None` if it names no namespace, or what
    /// can be no name.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed = if text.starts_with('{') {
            serde_json::from_str(text).ok()?
        } else {
            let (namespace, pod) = text.split_once([':', '/'])?;
            Self { namespace: namespace.into(), pod: pod.into() }
        };
        let fits = parsed.namespace.len() <= MAX_NAME && parsed.pod.len() <= MAX_NAME;
        (fits && !parsed.namespace.is_empty()).then_some(parsed)
    }
}

/// `namespace/pod`
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_form_is_read() {
        let shop = Workload { namespace: "shop".into(), pod: "web-1".into() };
        assert_eq!(shop.encode(), r#"{"ns":"shop","pod":"web-1"}"#);
        for text in [
            r#"{"ns":"shop","pod":"web-1"}"#,
            r#"{"ns":"shop", "nodeName":"n1", "pod":"web-1"}"#,
            "shop:web-1",
            "shop/web-1",
        ] {
            assert_eq!(Workload::parse(text).as_ref(), Some(&shop), "{text}");
        }
        let nameless = Workload { namespace: "shop".into(), pod: String::new() };
        assert_eq!(Workload::parse(r#"{"ns":"shop"}"#), Some(nameless));
        let long = "a".repeat(254);
        for text in [&format!("shop/{long}"), &format!("{long}/web")] {
            assert_eq!(Workload::parse(text), None);
        }
        for text in ["", "{", "shop", ":web-1", r#"{"pod":"x"}"#, "[1]"] {
            assert_eq!(Workload::parse(text), None, "{text}");
        }
    }
}
