//! AdmissionReviews, read and answered. No IO.

#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::PodSpec;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::Value;

use crate::index::object::is_label;
use crate::inject::edit::patch;
use crate::inject::{Outcome, warning_text};

const KIND: &str = "AdmissionReview";
const API_VERSION: &str = "admission.k8s.io/v1";
const MAX_UID: usize = 256;
/// API servers cut longer ones.
const MAX_WARNING: usize = 250;
const MAX_WARNINGS: usize = 10;

/// A pod about which something is to be decided.
#[derive(Debug)]
pub struct Asked {
    response: AdmissionResponse,
    pub namespace: String,
    pub dry_run: bool,
    pub meta: ObjectMeta,
    pub spec: PodSpec,
    /// As it came, with what our types do not know.
    pod: Value,
}

/// A body that asks about no pod.
#[derive(Debug)]
pub enum BadReview {
    /// Nothing that a review could be the answer to.
    NoReview(String),
    /// A review, with this answer.
    Answered(Vec<u8>),
}

impl Asked {
    /// Reads a review.
    ///
    /// # Errors
    /// When it is none, or none of a new pod.
    pub fn read(body: &[u8]) -> Result<Self, BadReview> {
        let no = |why: String| BadReview::NoReview(why);
        let mut document: Value =
            serde_json::from_slice(body).map_err(|error| no(format!("not JSON: {error}")))?;
        for (field, wanted) in [("kind", KIND), ("apiVersion", API_VERSION)] {
            if document.get(field).and_then(Value::as_str) != Some(wanted) {
                return Err(no(format!("{field} is not {wanted}")));
            }
        }
        let pod = document.pointer_mut("/request/object").map(Value::take).unwrap_or_default();
        if !pod.is_object() && !pod.is_null() {
            return Err(no("request.object is no object".into()));
        }
        let review: AdmissionReview<DynamicObject> = serde_json::from_value(document)
            .map_err(|error| no(format!("not an AdmissionReview: {error}")))?;
        let request: AdmissionRequest<DynamicObject> =
            review.try_into().map_err(|_| no("the review has no request".into()))?;
        if request.uid.is_empty() || request.uid.len() > MAX_UID {
            return Err(no("request.uid is empty or too long".into()));
        }
        let response = AdmissionResponse::from(&request);
        let kind = &request.kind;
        let is_pod = (kind.group.as_str(), kind.kind.as_str()) == ("", "Pod");
        if !is_pod || request.operation != Operation::Create || request.sub_resource.is_some() {
            // The webhook's configuration says too much, which is no reason to keep anything out.
            return Err(BadReview::Answered(bytes(response)));
        }
        let of = |field: &str| pod.get(field).cloned().unwrap_or(Value::Object(Default::default()));
        let read = serde_json::from_value(of("metadata"))
            .and_then(|meta| Ok((meta, serde_json::from_value::<PodSpec>(of("spec"))?)));
        let (meta, spec): (ObjectMeta, PodSpec) = match read {
            Ok(read) if pod.is_object() => read,
            Ok(_) => return Err(malformed(response, "request.object is no pod")),
            Err(error) => return Err(malformed(response, &format!("request.object: {error}"))),
        };
        let namespace = request.namespace.or_else(|| meta.namespace.clone()).unwrap_or_default();
        // It becomes a part of the path of a request: nothing but a name may.
        if !is_label(&namespace) {
            return Err(malformed(response, "the pod is in no namespace"));
        }
        Ok(Self { response, namespace, dry_run: request.dry_run, meta, spec, pod })
    }

    /// The answer for what was decided. Whatever it is, the pod may be created.
    pub fn answer(self, outcome: &Outcome) -> Vec<u8> {
        let Self { mut response, pod, .. } = self;
        let warnings = warnings(outcome);
        if !warnings.is_empty() {
            response.warnings = Some(warnings);
        }
        let (key, value) = match outcome {
            Outcome::Injected(injection) => {
                let patch = json_patch::Patch(patch(&pod, &[], &injection.edits));
                let patched = response.clone().with_patch(patch);
                response = patched.unwrap_or(response);
                ("injected", &injection.rule)
            }
            Outcome::Skipped { reason } => ("skipped", reason),
            Outcome::Refused { reason } => ("refused", reason),
        };
        response.audit_annotations.insert(key.into(), value.clone());
        bytes(response)
    }

    /// A pod has no name yet when it is to be made one.
    pub fn shown_name(&self) -> &str {
        let name = self.meta.name.as_deref().filter(|name| !name.is_empty());
        name.or(self.meta.generate_name.as_deref()).unwrap_or_default()
    }
}

/// What whoever creates the pod is told.
pub fn warnings(outcome: &Outcome) -> Vec<String> {
    let cut = |text: String| text.chars().take(MAX_WARNING).collect::<String>();
    match outcome {
        Outcome::Injected(injection) => {
            let warnings = injection.warnings.iter().take(MAX_WARNINGS);
            warnings.map(|finding| cut(warning_text(finding))).collect()
        }
        Outcome::Skipped { .. } => Vec::new(),
        Outcome::Refused { reason } => vec![cut(format!("no proxy was added: {reason}"))],
    }
}

fn malformed(response: AdmissionResponse, why: &str) -> BadReview {
    let mut response = response.deny(why);
    response.result.code = 400;
    BadReview::Answered(bytes(response))
}

fn bytes(response: AdmissionResponse) -> Vec<u8> {
    // The types of a response are made of text, numbers and maps with text for keys.
    serde_json::to_vec(&response.into_review()).unwrap_or_default()
}
