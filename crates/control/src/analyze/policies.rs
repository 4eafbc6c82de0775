//! Policies: what they are about is there, they agree, and somebody gets in.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_model::authz::{Action, ClientMatch, DefaultAccess, IdentityPattern};
use mesh_model::egress::{EgressAction, EgressRule};

use super::{Code, Found, Level, Scene, object_of};
use crate::index::Objects;
use crate::index::object::{
    AuthorizationPolicy, EgressPolicy, Kind, Labels, Name, ObjectKey, Pod, PolicyTarget,
};

pub(super) fn look(scene: &Scene<'_>, found: &mut Found) {
    let identities = identities(scene);
    for policy in scene.objects.authorization_policies() {
        let key = ObjectKey { kind: Kind::AuthorizationPolicy, name: policy.name.clone() };
        target(scene, &key, &policy.target, found);
        whom(policy, &key, identities.as_ref(), found);
        overruled(scene, policy, &key, found);
    }
    for policy in scene.objects.port_policies() {
        let key = ObjectKey { kind: Kind::ServerPolicy, name: policy.name.clone() };
        target(scene, &key, &policy.target, found);
    }
    for policy in scene.objects.traffic_policies() {
        let key = ObjectKey { kind: Kind::BackendTrafficPolicy, name: policy.name.clone() };
        target(scene, &key, &policy.target, found);
    }
    egress(scene, found);
    ports(scene, found);
}

/// What may leave, and is denied all the same.
fn egress(scene: &Scene<'_>, found: &mut Found) {
    let objects = scene.objects;
    // They come by namespace, and a namespace may have many.
    let policies: Vec<_> = objects.egress_policies().collect();
    for of_namespace in policies.chunk_by(|a, b| a.name.namespace == b.name.namespace) {
        egress_of(objects, of_namespace, found);
    }
}

fn egress_of(objects: &Objects, policies: &[&Arc<EgressPolicy>], found: &mut Found) {
    let Some(namespace) = policies.first().map(|policy| &policy.name.namespace) else { return };
    let (size, all) = (objects.egress_size(namespace), objects.egress_rules(namespace));
    for policy in policies {
        let key = ObjectKey { kind: Kind::EgressPolicy, name: policy.name.clone() };
        if size.is_too_much() {
            let about = "with those of the same namespace and of the mesh there are";
            let message = format!("nothing may leave the namespace: {about} {size}");
            found.add(Code::TooMany, &key, "spec", message);
            continue;
        }
        let of = |action| policy.rules.iter().filter(move |rule| rule.action == action);
        for (index, allowed) in of(EgressAction::Allow).enumerate() {
            let denies =
                |rule: &&EgressRule| rule.action == EgressAction::Deny && rule.covers(allowed);
            if let Some(denied) = all.rules.iter().find(denies) {
                let message = format!("{} denies all of it, and denials win", denied.meta);
                found.add(Code::Conflicting, &key, format!("spec.allow[{index}]"), message);
            }
        }
    }
}

/// Whether the target of a policy is there.
fn target(scene: &Scene<'_>, policy: &ObjectKey, target: &PolicyTarget, found: &mut Found) {
    let objects = scene.objects;
    let namespace = &policy.name.namespace;
    let mut missing = |what: String, field: &str| {
        let message = format!("{what} in namespace {namespace}; the policy is about nothing");
        found.add(Code::TargetMissing, policy, format!("spec.targetRef.{field}"), message);
    };
    let named = |name: &String| Name::new(namespace, name);
    match target {
        PolicyTarget::Namespace => {}
        PolicyTarget::Workload { kind, name, .. } => {
            let owns = |pod: &&std::sync::Arc<Pod>| {
                let owner = pod.owner.as_ref();
                pod.name.namespace == *namespace
                    && owner.is_some_and(|(k, n)| k == kind && n == name)
            };
            let is_there = objects.workload(*kind, &named(name)).is_some();
            if !is_there && objects.pods().find(owns).is_none() {
                missing(format!("there is no {} {name}", kind.as_str()), "name");
            }
        }
        PolicyTarget::Service { name, port } => match objects.service(&named(name)) {
            None => missing(format!("there is no Service {name}"), "name"),
            Some(service) => {
                let wanted = port.as_ref();
                let fits = |wanted: &crate::index::object::PortRef| {
                    service.ports.iter().any(|port| wanted.is(&port.name, port.port))
                };
                if wanted.is_some_and(|wanted| !fits(wanted)) {
                    missing(format!("Service {name} has no such port"), "port");
                }
            }
        },
        PolicyTarget::Route { kind, name, rule } => {
            let (kind, what) = (*kind, kind.as_str());
            if objects.route_head(kind, &named(name)).is_none() {
                missing(format!("there is no {what} {name}"), "name");
            } else if let Some(rule) = rule
                && !objects.rule_names(kind, &named(name)).contains(&rule.as_str())
            {
                missing(format!("{what} {name} has no rule named {rule}"), "sectionName");
            }
        }
        PolicyTarget::Pods { labels, .. } => {
            let is_one =
                |have: &Labels| labels.iter().all(|(key, value)| have.get(key) == Some(value));
            let runs = objects.pods().any(|p| p.name.namespace == *namespace && is_one(&p.labels));
            let written = || {
                let here = scene.written.iter().filter(|written| written.namespace == *namespace);
                here.flat_map(super::spelling::template_labels).any(|labels| is_one(&labels))
            };
            if !runs && !written() {
                let message = format!("no pod in namespace {namespace} has these labels");
                let field = "spec.targetRef.selector";
                found.add_as(Level::Warning, Code::TargetMissing, policy, field, message);
            }
        }
    }
}

/// All identities of a running mesh; `None` where that can't be told.
fn identities(scene: &Scene<'_>) -> Option<BTreeSet<String>> {
    scene.objects.identity().filter(|_| scene.complete)?;
    let of = |pod: &std::sync::Arc<Pod>| scene.objects.identity_of(pod).map(|id| id.to_string());
    Some(scene.objects.pods().filter_map(of).collect())
}

fn whom(
    policy: &AuthorizationPolicy,
    key: &ObjectKey,
    identities: Option<&BTreeSet<String>>,
    found: &mut Found,
) {
    if policy.action == Action::Deny && policy.from.is_empty() && policy.to.is_empty() {
        let message = "it denies everything to everybody, whatever other policies allow";
        found.add(Code::NobodyLetIn, key, "spec", message);
    }
    let (Action::Allow, Some(identities)) = (policy.action, identities) else { return };
    let known = |pattern: &IdentityPattern| match pattern {
        IdentityPattern::Exact(id) => identities.contains(id),
        IdentityPattern::Suffix(suffix) => {
            let end = format!(".{suffix}");
            identities.iter().any(|id| id.ends_with(&end))
        }
    };
    let nobody = |client: &ClientMatch| match client {
        ClientMatch::Among(patterns) => !patterns.iter().any(known),
        _ => false,
    };
    if !policy.from.is_empty() && policy.from.iter().all(|source| nobody(&source.client)) {
        let message = "no pod of the mesh has one of these identities";
        found.add(Code::NobodyLetIn, key, "spec.from", message);
    }
}

/// An allowance that a denial of the very same takes back.
fn overruled(scene: &Scene<'_>, policy: &AuthorizationPolicy, key: &ObjectKey, found: &mut Found) {
    let denies = |other: &&std::sync::Arc<AuthorizationPolicy>| {
        other.action == Action::Deny
            && other.name.namespace == policy.name.namespace
            && (&other.target, &other.from, &other.to) == (&policy.target, &policy.from, &policy.to)
    };
    if policy.action != Action::Allow {
        return;
    }
    if let Some(other) = scene.objects.authorization_policies().find(denies) {
        let message =
            format!("AuthorizationPolicy/{} denies the same, and denials win", other.name);
        found.add(Code::Conflicting, key, "spec", message);
    }
}

/// Policies that others go before, and ports that let nobody in.
fn ports(scene: &Scene<'_>, found: &mut Found) {
    let objects = scene.objects;
    for (key, message) in objects.conflicts() {
        found.add(Code::Conflicting, key, "spec.targetRef", message);
    }
    let mut closed: BTreeSet<(String, u16)> = BTreeSet::new();
    for pod in objects.pods().filter(|pod| pod.meshed()) {
        for port in objects.ports_of(pod, None) {
            let authz = objects.port_authz(&pod.name, port);
            let allows = authz.rules.iter().any(|rule| rule.action == Action::Allow);
            if authz.default.access == DefaultAccess::Deny && !allows {
                let by = object_of(&authz.default.meta).unwrap_or_else(|| owner(pod));
                closed.insert((by, port));
            }
        }
    }
    for (object, port) in closed {
        let message =
            format!("nobody may use port {port}: the default is deny, and no policy allows");
        found.add(Code::NobodyLetIn, object, "", message);
    }
    if !scene.complete {
        closed_by_files(scene, found);
    }
}

/// Without pods: a policy that denies where nothing in its namespace allows.
fn closed_by_files(scene: &Scene<'_>, found: &mut Found) {
    for policy in scene.objects.port_policies() {
        let namespace = &policy.name.namespace;
        let mut allowing = scene
            .objects
            .authorization_policies()
            .filter(|other| other.action == Action::Allow && other.name.namespace == *namespace);
        if policy.default_access == Some(DefaultAccess::Deny) && allowing.next().is_none() {
            let key = ObjectKey { kind: Kind::ServerPolicy, name: policy.name.clone() };
            let message = "the default is deny, and no policy of the namespace allows anything";
            found.add(Code::NobodyLetIn, key, "spec.defaultAccess", message);
        }
    }
}

/// What a pod is spoken of as.
fn owner(pod: &Pod) -> String {
    match &pod.owner {
        Some((kind, name)) => format!("{}/{}/{name}", kind.as_str(), pod.name.namespace),
        None => format!("Pod/{}", pod.name),
    }
}
