//! Every check: its stable id, how bad a failure is, and what holds when it passes.

use std::pin::Pin;
use std::sync::Arc;

use super::scene::Scene;
use super::{cluster, control_plane, identity, local, pre, proxies, round_trip, source};

/// One thing that can be looked at. Ids never change their meaning.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) id: &'static str,
    pub(super) category: &'static str,
    pub(super) severity: Severity,
    pub(super) stage: Stage,
    /// What is so if it passes.
    pub(super) claim: &'static str,
    pub(super) world: World,
    pub(super) needs: Needs,
    pub(super) run: fn(Arc<Scene>) -> Look,
}

/// A check at work.
pub(super) type Look = Pin<Box<dyn Future<Output = Outcome> + Send>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Warning,
    Error,
}

/// Where a check makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum World {
    Local,
    Cluster,
    Both,
}

/// When a check makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before a mesh is started.
    Before,
    Always,
    /// While a mesh runs.
    Mesh,
    /// While a mesh runs, also when just its proxies are of interest.
    Proxies,
}

/// What has to be there for a check to mean anything; without, it is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// An API server that answers.
    Api,
    /// A running mesh.
    Mesh,
    /// A control plane that answers.
    ControlPlane,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All well; a detail worth knowing, or nothing.
    Passed(String),
    Failed(Finding),
    /// It could not be looked at, and why.
    Skipped(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) message: String,
    /// What is concerned, each with its own detail.
    pub(super) objects: Vec<String>,
    /// What to do, usually a command.
    pub(super) remedy: String,
}

impl Outcome {
    pub(super) fn passed() -> Self {
        Self::Passed(String::new())
    }

    pub(super) fn failed(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Failed(Finding {
            message: message.into(),
            objects: Vec::new(),
            remedy: remedy.into(),
        })
    }

    /// Failed if there are any objects.
    pub(super) fn of(
        objects: Vec<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        if objects.is_empty() {
            return Self::passed();
        }
        Self::Failed(Finding { message: message.into(), objects, remedy: remedy.into() })
    }
}

macro_rules! checks {
    ($( $category:literal in $world:ident { $( $id:literal $severity:ident $stage:ident $needs:ident
        $claim:literal $run:path; )* } )*) => {
        /// In the order in which they are shown.
        pub(crate) const CATALOG: &[Check] = &[ $( $( Check {
            id: $id,
            category: $category,
            severity: Severity::$severity,
            stage: Stage::$stage,
            claim: $claim,
            world: World::$world,
            needs: Needs::$needs,
            run: |scene| Box::pin($run(scene)),
        }, )* )* ];
    };
}

checks! {
    "pre-start" in Local {
        "pre-not-running" Error Before Nothing "no local mesh of this name is running" pre::not_running;
        "pre-state-dir" Error Before Nothing "the state directory can be written" pre::state_dir;
        "pre-loopback" Error Before Nothing "addresses of 127.0.0.0/8 can be used" pre::loopback;
        "pre-transparent" Warning Before Nothing "--transparent could be used" pre::transparent;
    }
    "local-mesh" in Local {
        "local-supervisor" Error Proxies Nothing "the local mesh is running" local::supervisor;
        "local-state-dir" Error Mesh Mesh "the state directory is private" local::state_dir;
        "clock" Warning Always Nothing "the clock is plausible" local::clock;
    }
    "kubernetes-api" in Cluster {
        "kubernetes-api" Error Always Nothing "the API server answers" cluster::api::answers;
        "kubernetes-version" Error Always Api "the cluster is of a known version" cluster::api::version;
        "kubernetes-clock" Warning Always Api "the clocks agree" cluster::api::clock;
        "gateway-api" Warning Always Api "the cluster knows routes" cluster::api::gateway;
    }
    "pre-install" in Cluster {
        "pre-namespace" Error Before Api "the cluster has no mesh yet" cluster::pre::namespace;
        "pre-rights" Error Before Api "you may install one" cluster::pre::rights;
        "pre-dry-run" Error Before Api "every object would be accepted" cluster::pre::dry_run;
    }
    "installation" in Cluster {
        "installed" Error Proxies Api "a mesh is installed" cluster::control_plane::deployed;
        "crds" Error Mesh Mesh "its kinds are established" cluster::definitions::established;
        "control-plane-rights" Error Mesh Mesh "the control plane may do what it has to" cluster::rights::granted;
        "control-plane-scheduled" Error Mesh Mesh "the control plane has nodes" cluster::control_plane::scheduled;
        "control-plane-replicas" Error Mesh Mesh "its replicas are ready" cluster::control_plane::replicas;
    }
    "webhooks" in Cluster {
        "webhook-certificate" Error Mesh Mesh "the API server trusts the injector" cluster::webhook::certificate;
        "webhook-injects" Error Mesh Mesh "pods get a proxy" cluster::webhook::injects;
    }
    "control-plane" in Both {
        "control-plane-answers" Error Proxies Mesh "the control plane answers" control_plane::answers;
        "control-plane-version" Warning Mesh ControlPlane "the control plane is of meshctl's version" control_plane::version;
        "api-destination" Error Mesh ControlPlane "it tells endpoints" control_plane::destination;
        "api-profile" Error Mesh ControlPlane "it tells profiles" control_plane::profile;
        "api-outbound-policy" Error Mesh ControlPlane "it tells routes" control_plane::outbound;
        "api-inbound-policy" Error Mesh ControlPlane "it tells the policies of ports" control_plane::inbound;
    }
    "configuration" in Both {
        "source-errors" Error Mesh ControlPlane "every object is in force as it is written" source::errors;
        "source-warnings" Warning Mesh ControlPlane "no object has a reservation" source::warnings;
        "routes-accepted" Warning Mesh ControlPlane "every route is accepted" source::routes;
    }
    "identity" in Both {
        "identity-roots" Error Mesh Mesh "there is a root to trust" identity::roots;
        "identity-roots-life" Warning Mesh Mesh "every root is valid for long" identity::roots_life;
        "identity-issuer" Error Mesh Mesh "the issuer may certify" identity::issuer;
        "identity-issuer-key" Warning Mesh Mesh "the issuer's key is of the usual type" identity::issuer_key;
        "identity-issuer-life" Warning Mesh Mesh "the issuer is valid for long" identity::issuer_life;
        "identity-certified" Error Proxies ControlPlane "every proxy has a valid certificate" identity::certified;
        "identity-renewed" Warning Proxies ControlPlane "every certificate is renewed in time" identity::renewed;
    }
    "proxies" in Both {
        "pods-ready" Error Proxies ControlPlane "every pod is ready" proxies::pods_ready;
        "pods-meshed" Warning Proxies ControlPlane "every pod has a proxy" proxies::pods_meshed;
    }
    "proxies" in Local {
        "pod-addresses" Error Proxies ControlPlane "every pod has an address of its own" proxies::addresses;
    }
    "proxies" in Both {
        "proxies-reachable" Error Proxies ControlPlane "every proxy answers the control plane" proxies::reachable;
    }
    "proxies" in Local {
        "proxies-listening" Error Proxies ControlPlane "every proxy takes connections" proxies::listening;
    }
    "proxies" in Both {
        "proxies-ready" Error Proxies ControlPlane "every proxy is ready" proxies::ready;
        "proxies-in-sync" Error Proxies ControlPlane "every proxy is in sync with the control plane" proxies::in_sync;
        "proxies-config-accepted" Warning Proxies ControlPlane "no proxy rejected configuration" proxies::config_accepted;
        "proxies-version" Warning Proxies ControlPlane "every proxy is of the control plane's version" proxies::version;
    }
    "observability" in Both {
        "stat-round-trip" Error Proxies ControlPlane "stat gets figures" round_trip::stat;
        "tap-round-trip" Error Proxies ControlPlane "tap reaches every proxy" round_trip::tap;
    }
}
