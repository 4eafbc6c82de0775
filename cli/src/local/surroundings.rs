//! What all pods of a mesh share: the proxy binary, the environment they inherit, where logs go.

use std::env;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use super::control::ControlAccess;
use super::environment::{PROXY_PASSED_ON, is_inherited, reaches_control};
use super::identity::Identities;
use super::netns::Netns;
use super::pod::PodKey;
use super::programs::Program;
use crate::state_dir::StateDir;

#[derive(Debug)]
pub struct Surroundings {
    pub proxy: Program,
    /// What proxies inherit.
    pub proxy_env: Vec<(String, String)>,
    /// What applications inherit.
    pub app_env: Vec<(String, String)>,
    /// What the control plane inherits.
    pub control_env: Vec<(String, String)>,
    /// `None` in a mesh without identity.
    pub identities: Option<Identities>,
    pub logs: PathBuf,
    /// The bridge of a transparent mesh.
    pub hub: Option<Hub>,
    pub control: ControlAccess,
}

/// The namespace that joins those of the pods, where the control plane runs.
#[derive(Clone, Debug)]
pub struct Hub {
    pub netns: Arc<Netns>,
    pub ip: Ipv4Addr,
}

impl Surroundings {
    /// Those of the mesh in `dir`, with the environment of this process.
    pub fn of_process(
        dir: &StateDir,
        hub: Option<Hub>,
        identities: Option<Identities>,
    ) -> io::Result<Self> {
        let vars = || {
            env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            })
        };
        Ok(Self {
            proxy: Program::proxy()?,
            proxy_env: vars()
                .filter(|(name, _)| PROXY_PASSED_ON.contains(&name.as_str()))
                .collect(),
            app_env: vars().filter(|(name, _)| is_inherited(name)).collect(),
            control_env: vars().filter(|(name, _)| reaches_control(name)).collect(),
            identities,
            logs: dir.logs(),
            hub,
            control: ControlAccess::new(dir.clone()),
        })
    }

    /// `logs/shop.web-1.proxy.log`
    pub fn log_of(&self, pod: &PodKey, program: &str) -> PathBuf {
        self.logs.join(format!("{}.{program}.log", pod.file_stem()))
    }
}
