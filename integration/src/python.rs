//! Programs in Python: clients, servers and control planes that share no code with ours.
//!
//! What they need comes from PyPI, once, into an environment beside the build. Where there is no
//! Python or no registry, tests that want it say that they are skipped.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::process::Process;
use crate::{programs, wait};

const PACKAGES: [&str; 4] =
    ["grpcio>=1.70", "grpcio-tools>=1.70", "websockets>=14", "cryptography>=44"];

/// An interpreter with [`PACKAGES`].
#[derive(Clone, Debug)]
pub struct Python {
    interpreter: PathBuf,
}

impl Python {
    /// `None` when there is none; that `test` is skipped has been said then.
    pub fn find(test: &str) -> Option<Self> {
        static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        match FOUND.get_or_init(environment) {
            Ok(interpreter) => Some(Self { interpreter: interpreter.clone() }),
            Err(why) => {
                programs::skipped(test, why);
                None
            }
        }
    }

    /// A command that runs one of the scripts among the scenarios.
    pub fn script(&self, script: &str) -> Command {
        let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
        let mut command = Command::new(&self.interpreter);
        // Nothing is written beside the scripts.
        command.args(["-u", "-B"]).arg(scenarios.join(script));
        // Nothing of the surroundings may decide where connections go.
        for name in ["http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    /// As [`Self::script`], for one that uses the messages of linkerd2-proxy-api and of our own
    /// extensions.
    ///
    /// # Panics
    /// When they cannot be generated.
    pub fn script_with_messages(&self, script: &str) -> Command {
        static GENERATED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let generated = GENERATED.get_or_init(|| generate(&self.interpreter));
        let mut command = self.script(script);
        command.env("PYTHONPATH", generated.as_ref().unwrap_or_else(|why| panic!("{why}")));
        command
    }

    /// Runs a command of [`Self::script`] to its end.
    ///
    /// # Panics
    /// When it fails; its output is shown.
    pub async fn run(name: &str, command: Command, logs: &Path) -> String {
        let mut process = Process::start(name, command, logs);
        let status = process.end().await;
        assert!(status.success(), "{name}: {status}\n{}", process.log());
        process.log()
    }
}

/// The port that a server says it listens on, in a line `port N`.
pub async fn port(server: &mut Process) -> u16 {
    wait::until("a server in Python", async || {
        server.assert_sound();
        server.log().lines().find_map(|line| line.strip_prefix("port ")?.parse().ok())
    })
    .await
}

/// The interpreter of an environment that has the packages, made if need be.
fn environment() -> Result<PathBuf, String> {
    // target/debug/deps/scenarios-0123456789abcdef
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = test.ancestors().nth(3).ok_or("no folder for what is built")?;
    let dir = target.join("python");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let interpreter = dir.join("bin/python");
    // Other tests may be making it.
    let lock = File::create(dir.join("lock")).map_err(|error| error.to_string())?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
    let made = dir.join("packages");
    let wanted = PACKAGES.join(" ");
    if fs::read_to_string(&made).is_ok_and(|packages| packages == wanted) {
        return Ok(interpreter);
    }
    done(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    let pip = ["-m", "pip", "install", "--quiet", "--timeout", "20", "--retries", "1"];
    done(Command::new(&interpreter).args(pip).args(PACKAGES))?;
    fs::write(&made, wanted).map_err(|error| error.to_string())?;
    Ok(interpreter)
}

/// Generates the messages from the same files as those of the published crate were.
fn generate(interpreter: &Path) -> Result<PathBuf, String> {
    let published = source_of("linkerd2-proxy-api")?.join("proto");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/proto");
    let folder = interpreter.ancestors().nth(2).ok_or("no folder above the interpreter")?;
    let lock = File::create(folder.join("lock")).map_err(|error| error.to_string())?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
    let out = folder.join("messages");
    fs::create_dir_all(&out).map_err(|error| error.to_string())?;
    let published = standard_imports(&published, &folder.join("published"))
        .map_err(|error| format!("{}: {error}", published.display()))?;
    let mut command = Command::new(interpreter);
    command.args(["-m", "grpc_tools.protoc", "--python_out"]).arg(&out);
    for include in [&published, &ours] {
        command.arg("--proto_path").arg(include);
    }
    for include in [&published, &ours.join("mesh/ext/v1")] {
        let files = fs::read_dir(include).map_err(|e| format!("{}: {e}", include.display()))?;
        let files = files.filter_map(|entry| Some(entry.ok()?.path()));
        command.args(files.filter(|file| file.extension().is_some_and(|e| e == "proto")));
    }
    done(&mut command)?;
    Ok(out)
}

/// Copies of the files that take the timestamp from where Python has it: the published ones have one
/// of their own, whose module would hide Python's.
fn standard_imports(from: &Path, to: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "proto") {
            let text = fs::read_to_string(&file)?;
            let text =
                text.replace("protobuf/timestamp/timestamp.proto", "protobuf/timestamp.proto");
            fs::write(to.join(file.file_name().unwrap_or_default()), text)?;
        }
    }
    Ok(to.to_owned())
}

/// Where cargo keeps the source of a package.
fn source_of(package: &str) -> Result<PathBuf, String> {
    let mut command = Command::new(env!("CARGO"));
    // For this platform only: the sources of packages for others may not be here.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.args(["metadata", "--format-version=1", "--offline", "--filter-platform", &platform]);
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("{command:?}: {e}"))?;
    let found = metadata["packages"].as_array().into_iter().flatten().find_map(|found| {
        let manifest = found["manifest_path"].as_str()?;
        (found["name"] == package).then(|| Path::new(manifest).with_file_name(""))
    });
    found.ok_or_else(|| format!("cargo knows of no package {package}"))
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
