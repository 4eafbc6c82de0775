//! What happens to a running mesh: the control plane goes and comes back, pods are added.

use rustix::process::Signal;

use super::{Mesh, Pod};
use crate::wait;

impl Mesh {
    /// Ends the control plane at once, as a crash does.
    ///
    /// # Panics
    /// When there is none.
    pub async fn crash_control(&mut self) {
        let mut control = self.control.take().expect("a running control plane");
        control.signal(Signal::KILL);
        control.end().await;
    }

    /// Starts the control plane again, where it was.
    pub async fn restart_control(&mut self) {
        self.start_control().await;
    }

    /// Adds a pod, without waiting for its proxy.
    pub fn add(&mut self, pod: Pod) {
        let ip = self.pod_ip(self.sidecars.len());
        self.write_pod(&pod, ip);
        let sidecar = self.start_proxy(pod, ip);
        self.sidecars.push(sidecar);
    }

    /// Waits for the proxy of a pod.
    ///
    /// # Panics
    /// When there is no such pod, or it does not get ready.
    pub async fn ready(&self, name: &str) {
        let sidecar = self.pod(name);
        wait::until(&format!("the proxy of {name} to be ready"), async || {
            sidecar.is_ready().await.then_some(())
        })
        .await;
    }
}
