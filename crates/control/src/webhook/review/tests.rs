use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::inject::{self, INJECT, NamespaceMeta, Settings};

const REPLICASET: &str = include_str!("documents/replicaset.json");
const JOB: &str = include_str!("documents/job.json");

fn namespace() -> NamespaceMeta {
    let label = (INJECT.to_owned(), "enabled".to_owned());
    NamespaceMeta { name: "shop".into(), labels: [label].into(), ..NamespaceMeta::default() }
}

fn answer_to(body: &str) -> Value {
    let asked = Asked::read(body.as_bytes()).unwrap();
    let settings = Settings { trust_roots: Some("roots".into()), ..Settings::default() };
    let outcome = inject::inject(&asked.meta, &asked.spec, &namespace(), &settings);
    serde_json::from_slice(&asked.answer(&outcome)).unwrap()
}

/// The pod as the API server makes it of our answer.
fn patched(body: &str) -> (Value, Value) {
    let answer = answer_to(body);
    let review: Value = serde_json::from_str(body).unwrap();
    let response = &answer["response"];
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(response["uid"], review["request"]["uid"]);
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let response: AdmissionResponse = serde_json::from_value(response.clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&response.patch.unwrap()).unwrap();
    let mut pod = review["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    (pod, answer)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[test]
fn a_pod_of_a_replica_set_is_injected() {
    let (pod, answer) = patched(REPLICASET);
    assert_eq!(names(&pod["spec"]["initContainers"]), ["mesh-init", "mesh-proxy"]);
    assert_eq!(
        names(&pod["spec"]["volumes"]),
        ["mesh-token", "mesh-identity", "kube-api-access-x7k2p"]
    );
    let own = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(own["aFieldOfTheFuture"], true, "nothing is lost that our types do not know");
    assert!(answer["response"].get("warnings").is_none());
    let rule = &answer["response"]["auditAnnotations"]["injected"];
    assert_eq!(rule, "the namespace's label meshctl.dev/inject is enabled");
    serde_json::from_value::<Pod>(pod).unwrap();
}

#[test]
fn a_pod_of_a_job_keeps_its_own_sidecars_behind_the_proxy() {
    let (pod, answer) = patched(JOB);
    assert_eq!(names(&pod["spec"]["initContainers"]), ["mesh-init", "mesh-proxy", "fetch", "logs"]);
    assert_eq!(pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
    let warnings = answer["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].as_str().unwrap().contains("config.meshctl.dev/proxy-cpu-request"));
    assert!(warnings[1].as_str().unwrap().contains("`yes` is not one of off, common, json"));
    assert!(Asked::read(JOB.as_bytes()).unwrap().dry_run);
}

#[test]
fn the_second_call_for_a_pod_changes_nothing() {
    for body in [REPLICASET, JOB] {
        let (pod, _) = patched(body);
        let mut review: Value = serde_json::from_str(body).unwrap();
        review["request"]["object"] = pod;
        let answer = answer_to(&review.to_string());
        assert!(answer["response"].get("patch").is_none());
        assert_eq!(answer["response"]["allowed"], true);
    }
}

#[test]
fn a_pod_that_cannot_have_a_proxy_is_created_with_a_warning() {
    let mut review: Value = serde_json::from_str(REPLICASET).unwrap();
    review["request"]["object"]["spec"]["hostNetwork"] = true.into();
    let response = &answer_to(&review.to_string())["response"];
    assert_eq!(response["allowed"], true);
    assert!(response.get("patch").is_none());
    assert!(response["warnings"][0].as_str().unwrap().contains("hostNetwork"));
}

#[test]
fn a_pod_is_named_by_what_makes_its_name() {
    let asked = Asked::read(REPLICASET.as_bytes()).unwrap();
    assert_eq!((asked.shown_name(), asked.namespace.as_str()), ("web-6d5f9c7b8d-", "shop"));
}

fn with(change: impl FnOnce(&mut Value)) -> Result<Asked, BadReview> {
    let mut review: Value = serde_json::from_str(REPLICASET).unwrap();
    change(&mut review);
    Asked::read(review.to_string().as_bytes())
}

#[test]
fn what_is_no_review_is_told_so() {
    for (body, why) in [
        ("", "not JSON"),
        ("null", "kind"),
        ("[]", "kind"),
        ("{\"kind\":\"AdmissionReview\"}", "apiVersion"),
        (
            "{\"kind\":\"AdmissionReview\",\"apiVersion\":\"admission.k8s.io/v1beta1\"}",
            "apiVersion",
        ),
        ("{\"kind\":\"AdmissionReview\",\"apiVersion\":\"admission.k8s.io/v1\"}", "no request"),
        ("\u{feff}{}", "not JSON"),
        (&"[".repeat(1 << 20), "recursion"),
        (&"{\"a\":".repeat(1 << 18), "recursion"),
    ] {
        match Asked::read(body.as_bytes()) {
            Err(BadReview::NoReview(said)) => assert!(said.contains(why), "{why}: {said}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    for change in [
        |review: &mut Value| review["request"]["uid"] = "".into(),
        |review: &mut Value| review["request"]["uid"] = "x".repeat(257).into(),
        |review: &mut Value| review["request"]["uid"] = 7.into(),
        |review: &mut Value| review["request"]["operation"] = "create".into(),
        |review: &mut Value| review["request"] = Value::Null,
        |review: &mut Value| review["request"]["object"] = "pod".into(),
    ] {
        assert!(matches!(with(change), Err(BadReview::NoReview(_))));
    }
}

#[test]
fn objects_that_are_no_pods_are_refused() {
    for change in [
        |review: &mut Value| review["request"]["object"] = Value::Null,
        |review: &mut Value| review["request"]["object"]["spec"] = json!([1]),
        |review: &mut Value| review["request"]["object"]["spec"]["containers"] = "all".into(),
        |review: &mut Value| {
            let request = review["request"].as_object_mut().unwrap();
            request.remove("namespace");
            request["object"]["metadata"].as_object_mut().unwrap().remove("namespace");
        },
    ] {
        let Err(BadReview::Answered(answer)) = with(change) else { panic!() };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["response"]["allowed"], false, "{answer}");
        assert_eq!(answer["response"]["status"]["code"], 400);
    }
}

/// It becomes a part of the path of a request to the API server, with our rights.
#[test]
fn a_namespace_is_a_name_and_no_path() {
    for hostile in [
        "mesh-system/secrets/mesh-identity-issuer",
        "mesh-system/secrets?fieldSelector=metadata.name%3Dx",
        "..",
        "shop%2Fsecrets",
        "Shop",
        &"a".repeat(64),
    ] {
        let answer = with(|review: &mut Value| review["request"]["namespace"] = hostile.into());
        let Err(BadReview::Answered(answer)) = answer else { panic!("{hostile}") };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["response"]["allowed"], false, "{answer}");
    }
}

#[test]
fn what_is_not_a_new_pod_passes() {
    for change in [
        |review: &mut Value| review["request"]["kind"]["kind"] = "Deployment".into(),
        |review: &mut Value| review["request"]["operation"] = "UPDATE".into(),
        |review: &mut Value| review["request"]["subResource"] = "status".into(),
    ] {
        let Err(BadReview::Answered(answer)) = with(change) else { panic!() };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
    }
}

#[test]
fn long_warnings_are_cut() {
    let reason = "ä".repeat(1000);
    let told = warnings(&Outcome::Refused { reason });
    assert_eq!(told[0].chars().count(), MAX_WARNING);
}

proptest! {
    /// Whatever one value of a review is replaced by, nothing panics.
    #[test]
    fn damaged_reviews_are_survived(at in 0..400usize, by in 0..6usize, cut in 0..REPLICASET.len()) {
        let mut review: Value = serde_json::from_str(REPLICASET).unwrap();
        let by = [json!(null), json!(-1), json!("x"), json!([]), json!({}), json!(true)][by].clone();
        replace(&mut review, &mut at.clone(), &by);
        if let Ok(asked) = Asked::read(review.to_string().as_bytes()) {
            let outcome = inject::inject(&asked.meta, &asked.spec, &namespace(), &Settings::default());
            let answer: Value = serde_json::from_slice(&asked.answer(&outcome)).unwrap();
            prop_assert_eq!(&answer["response"]["uid"], &review["request"]["uid"]);
        }
        let _ = Asked::read(&REPLICASET.as_bytes()[..cut]);
    }
}

/// Replaces the value that comes as number `left`, in the order of the text.
fn replace(value: &mut Value, left: &mut usize, by: &Value) {
    if *left == 0 {
        *value = by.clone();
    }
    *left = left.wrapping_sub(1);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, left, by)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, left, by)),
        _ => {}
    }
}
