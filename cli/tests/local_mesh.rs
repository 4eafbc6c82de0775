//! The local mesh as its user sees it: the real program, with real processes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

const MANIFEST: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          command: [mesh-demo, web, --linger-ms, \"0\"]
          ports: [{name: http, containerPort: 18080}]
          readinessProbe: {httpGet: {path: /readyz, port: http}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
    - backendRefs: [{name: web, port: 80}]
      timeouts: {request: TIMEOUT}
";

/// A program that starts another, as a package manager's `start` does, and tells its pid.
const PARENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: parent}
spec:
  selector: {matchLabels: {app: parent}}
  template:
    metadata: {labels: {app: parent}}
    spec:
      containers:
        - name: parent
          command: [sh, -c, 'sleep 1000 & echo $! > grandchild.new; mv grandchild.new grandchild; wait']
";

/// A directory of local meshes of its own; what runs in it ends with the test.
struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("web.yaml"), MANIFEST).unwrap();
        fs::write(dir.path().join("parent.yaml"), PARENT).unwrap();
        Self { dir }
    }

    fn meshctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("KUBECONFIG", "/nonexistent")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.meshctl(args).output().unwrap()
    }

    /// Runs it, which must succeed, and returns what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "meshctl {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("meshctl/default")
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.state_dir().join("state.json")).unwrap()).unwrap()
    }

    /// Waits until the program of [`PARENT`] has told it.
    fn grandchild(&self) -> Pid {
        loop {
            match fs::read_to_string(self.dir.path().join("grandchild")) {
                Ok(text) => return Pid::from_raw(text.trim().parse().unwrap()).unwrap(),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn pods(&self) -> Vec<Value> {
        let status: Value = serde_json::from_str(&self.ok(&["local", "ps", "-o", "json"])).unwrap();
        status["pods"].as_array().unwrap().clone()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.meshctl(&["local", "down"]).output();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pid(value: &Value) -> Pid {
    Pid::from_raw(i32::try_from(value["pid"].as_u64().unwrap()).unwrap()).unwrap()
}

/// Waits for the processes to end; they must be ours.
fn wait_ended(handles: &[impl AsFd]) {
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    for handle in handles {
        let mut polled = [PollFd::new(handle, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "a process outlived the mesh");
    }
}

#[test]
fn killing_the_supervisor_leaves_nothing_and_the_next_up_works() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["local", "up", "-f", "web.yaml", "-f", "parent.yaml"]);
    let record = sandbox.record();
    let processes = record["processes"].as_array().unwrap();
    // The control plane, and for each pod the proxy and the application.
    assert_eq!(processes.len(), 7);
    let open = |value: &Value| pidfd_open(pid(value), PidfdFlags::empty()).unwrap();
    let mut handles: Vec<_> = processes.iter().map(open).collect();
    handles.push(pidfd_open(sandbox.grandchild(), PidfdFlags::empty()).unwrap());

    kill_process(pid(&record["supervisor"]), Signal::KILL).unwrap();
    wait_ended(&handles);
    assert_eq!(sandbox.run(&["local", "ps"]).status.code(), Some(3));

    sandbox.ok(&["local", "up", "-f", "web.yaml"]);
    assert_eq!(sandbox.pods().len(), 2);
    let handles: Vec<_> =
        sandbox.record()["processes"].as_array().unwrap().iter().map(open).collect();
    sandbox.ok(&["local", "down"]);
    wait_ended(&handles);
    let mut left: Vec<_> =
        fs::read_dir(sandbox.state_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["identity", "lock", "logs"]);
}

#[test]
fn a_second_mesh_of_the_name_is_refused_and_another_name_is_not() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["local", "up", "-f", "web.yaml"]);
    let refused = sandbox.run(&["local", "up", "-f", "web.yaml"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("is running already (pid "),
        "{}",
        text(&refused.stderr)
    );
    let demo = sandbox.run(&["demo"]);
    assert!(text(&demo.stderr).contains("is running already (pid "), "{}", text(&demo.stderr));

    let other = ["local", "up", "-f", "web.yaml", "--name", "other"];
    sandbox.ok(&other);
    sandbox.ok(&["local", "down", "--name", "other"]);
    assert_eq!(sandbox.pods().len(), 2, "the first goes on");
}

#[test]
fn a_rollout_replaces_every_pod_and_scaling_adds_some() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["local", "up", "-f", "web.yaml"]);
    let names = |pods: Vec<Value>| -> Vec<String> {
        pods.iter().map(|pod| pod["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(sandbox.pods()), ["web-1", "web-2"]);
    sandbox.ok(&["local", "restart", "deploy/web"]);
    assert_eq!(names(sandbox.pods()), ["web-3", "web-4"]);
    sandbox.ok(&["local", "scale", "deploy/web", "--replicas", "3"]);
    assert_eq!(names(sandbox.pods()), ["web-3", "web-4", "web-5"]);
    let applied = sandbox.ok(&["local", "apply", "-f", "web.yaml"]);
    assert!(applied.contains("Deployment/shop/web unchanged"), "{applied}");
    let deleted = sandbox.ok(&["local", "delete", "-f", "web.yaml"]);
    assert!(deleted.contains("Deployment/shop/web deleted"), "{deleted}");
    // Its pods finish what they do before they go, and are waited for.
    assert_eq!(sandbox.pods(), [Value::Null; 0]);
    let stat = sandbox.run(&["stat", "deploy/web", "-n", "shop"]);
    assert!(text(&stat.stderr).contains("there is no deployment/web"), "{}", text(&stat.stderr));
}

#[test]
fn a_change_is_in_force_when_the_command_returns() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["local", "up", "-f", "web.yaml"]);
    let file = sandbox.dir.path().join("route.yaml");
    for seconds in 1..=5 {
        let timeout = format!("request {seconds}s");
        fs::write(&file, ROUTE.replace("TIMEOUT", &format!("{seconds}s"))).unwrap();
        sandbox.ok(&["local", "apply", "-f", "route.yaml"]);
        let routes = sandbox.ok(&["routes", "svc/web", "-n", "shop", "-o", "json"]);
        assert!(routes.contains(&timeout), "{timeout}: {routes}");
    }
    sandbox.ok(&["local", "delete", "-f", "route.yaml"]);
    let routes = sandbox.ok(&["routes", "svc/web", "-n", "shop", "-o", "json"]);
    assert!(!routes.contains("HTTPRoute"), "{routes}");
}

#[test]
fn wrong_manifests_are_told_with_file_line_and_field_and_nothing_is_left() {
    let sandbox = Sandbox::new();
    let wrong = MANIFEST.replace("replicas: 2", "replicas: many").replace("mesh-demo", "no-such");
    fs::write(sandbox.dir.path().join("wrong.yaml"), wrong).unwrap();
    let output = sandbox.run(&["local", "up", "-f", "wrong.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("wrong.yaml:5: Deployment/shop/web: spec.replicas: "), "{told}");
    assert_eq!(sandbox.run(&["local", "ps"]).status.code(), Some(3));
}

#[test]
fn a_port_that_is_taken_is_named_with_who_has_it() {
    let sandbox = Sandbox::new();
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let manifest = MANIFEST.replace("18080", &port);
    fs::write(sandbox.dir.path().join("web.yaml"), manifest).unwrap();
    let output = sandbox.run(&["local", "up", "-f", "web.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains(&format!("need port {port}")), "{told}");
    assert!(told.contains(&format!("(pid {})", std::process::id())), "{told}");
}

#[test]
fn an_application_joins_for_as_long_as_it_runs() {
    let sandbox = Sandbox::new();
    let alone = sandbox.run(&["run", "mine", "--port", "18081", "--", "true"]);
    assert_eq!(alone.status.code(), Some(3));
    assert!(text(&alone.stderr).contains("meshctl local up"), "{}", text(&alone.stderr));

    sandbox.ok(&["local", "up", "-f", "web.yaml"]);
    let script = "echo $POD_NAME; echo $WEB_SERVICE_HOST:$WEB_SERVICE_PORT; exit 7";
    let args = ["run", "mine", "-n", "shop", "--port", "18081", "--", "sh", "-c", script];
    for name in ["mine-1", "mine-2"] {
        let output = sandbox.run(&args);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(name));
        let web = lines.next().unwrap();
        assert!(web.starts_with("127.") && web.contains(":15"), "{web}");
    }
    let nothing = sandbox.run(&["run", "mine", "--port", "18081", "--", "no-such-program"]);
    assert!(text(&nothing.stderr).contains("no program no-such-program"));
}
