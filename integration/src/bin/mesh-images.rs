//! Builds the images of the mesh without a container engine: static programs, each alone in an archive that
//! `docker load`, `ctr images import` and `kind load image-archive` take.
//!
//! `cargo run --release -p mesh-integration --bin mesh-images` writes `target/images/*.tar`. The same sources give the
//! same bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};
use clap::Parser;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// Build the images of the mesh as archives
#[derive(Debug, Parser)]
struct Args {
    /// Where the archives go
    #[arg(long, value_name = "DIR", default_value = "target/images")]
    out: PathBuf,
    /// What stands before /mesh-proxy in their names
    #[arg(long, value_name = "PREFIX", default_value = "ghcr.io/meshctl")]
    registry: String,
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// What they are to run on
    #[arg(long, value_name = "TRIPLE", default_value = "x86_64-unknown-linux-gnu")]
    target: String,
    /// Take the programs of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// One image: a program, and whom it runs as.
struct Image {
    name: &'static str,
    user: u32,
}

/// The proxy's user is the one whose connections are not redirected.
const IMAGES: [Image; 3] = [
    Image { name: "mesh-proxy", user: 2102 },
    Image { name: "mesh-control", user: 2103 },
    Image { name: "mesh-demo", user: 2104 },
];
/// Larger ones would be a burden on every node. Bytes.
const MOST: u64 = 15 << 20;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to report to when stderr is closed.
            let _ = writeln!(io::stderr(), "mesh-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let architecture = match args.target.split('-').next() {
        Some("x86_64") => "amd64",
        Some("aarch64") => "arm64",
        _ => bail!("--target {}: images are made for x86_64 and aarch64", args.target),
    };
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build(&args.target)?,
    };
    fs::create_dir_all(&args.out).with_context(|| format!("can't make {}", args.out.display()))?;
    for image in &IMAGES {
        let program = programs.join(image.name);
        let bytes =
            fs::read(&program).with_context(|| format!("can't read {}", program.display()))?;
        if is_dynamic(&bytes) {
            bail!("{} needs shared libraries, and an image has none", program.display());
        }
        let path = args.out.join(format!("{}.tar", image.name));
        let reference = format!("{}/{}:{}", args.registry, image.name, args.tag);
        let size = write(&path, image, &reference, architecture, &bytes)
            .with_context(|| format!("can't write {}", path.display()))?;
        if size > MOST {
            bail!("{} is {size} bytes large, more than {MOST}", path.display());
        }
        writeln!(io::stdout(), "{}  {reference}  {:.1} MiB", path.display(), mebibytes(size))?;
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Static programs: glibc's resolver is a part of them, and reads `/etc/resolv.conf` and `/etc/hosts` alone.
fn build(target: &str) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    // Paths of this machine would make other bytes of the same sources.
    let mut flags =
        format!("-C target-feature=+crt-static --remap-path-prefix={}=/mesh", root.display());
    if let Some(home) = home {
        flags += &format!(" --remap-path-prefix={}=/cargo", home.display());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&root).env("RUSTFLAGS", flags);
    command.args(["build", "--release", "--locked", "--target", target]);
    command.args(["-p", "mesh-proxy", "-p", "mesh-control", "-p", "meshctl"]);
    for image in &IMAGES {
        command.args(["--bin", image.name]);
    }
    if !command.status().context("can't run cargo")?.success() {
        bail!("cargo could not build the programs");
    }
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(folder.join(target).join("release"))
}

/// Whether an ELF file names an interpreter, which is what loads shared libraries.
fn is_dynamic(elf: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let at = |from: usize, bytes: usize| {
        let part = elf.get(from..from + bytes)?;
        Some(part.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let headers = || {
        let (start, size, count) = (at(32, 8)?, at(54, 2)?, at(56, 2)?);
        let first = |i: u64| at(usize::try_from(start + i * size).ok()?, 4);
        Some((0..count).any(|i| first(i) == Some(INTERPRETER.into())))
    };
    headers().unwrap_or(true)
}

/// Writes an archive in both layouts, that of the OCI and Docker's own, and returns its size.
fn write(
    path: &Path,
    image: &Image,
    reference: &str,
    architecture: &str,
    program: &[u8],
) -> anyhow::Result<u64> {
    let layer = layer(image, program)?;
    let mut zipper = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    zipper.write_all(&layer)?;
    let zipped = zipper.finish()?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": format!("{0}:{0}", image.user),
            // A manifest names the program as on any machine.
            "Env": ["PATH=/"],
            "Entrypoint": [format!("/{}", image.name)],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hash(&layer))] },
        "history": [{ "created_by": "mesh-images" }],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &zipped)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let tag = reference.rsplit(':').next().unwrap_or_default();
    entry["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": tag,
    });
    entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker = json!([{
        "Config": blob(&config),
        "RepoTags": [reference],
        "Layers": [blob(&zipped)],
    }]);
    let mut archive = Builder::new(File::create(path)?);
    for folder in ["blobs/", "blobs/sha256/"] {
        add_folder(&mut archive, folder)?;
    }
    for bytes in [&config, &manifest, &zipped] {
        add_file(&mut archive, &blob(bytes), bytes, 0o644, 0)?;
    }
    add_file(&mut archive, "index.json", &serde_json::to_vec(&index)?, 0o644, 0)?;
    add_file(&mut archive, "manifest.json", &serde_json::to_vec(&docker)?, 0o644, 0)?;
    add_file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644, 0)?;
    archive.into_inner()?.sync_all()?;
    Ok(fs::metadata(path)?.len())
}

/// The only layer: the program.
fn layer(image: &Image, program: &[u8]) -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    add_file(&mut layer, image.name, program, 0o755, 0)?;
    layer.into_inner()
}

fn add_folder(archive: &mut Builder<impl Write>, name: &str) -> io::Result<()> {
    let mut header = header(0, 0o755, 0);
    header.set_entry_type(EntryType::Directory);
    archive.append_data(&mut header, name, io::empty())
}

fn add_file(
    archive: &mut Builder<impl Write>,
    name: &str,
    bytes: &[u8],
    mode: u32,
    owner: u64,
) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64, mode, owner), name, bytes)
}

/// Without anything of this machine or moment.
fn header(size: u64, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", hash(bytes)),
        "size": bytes.len(),
    })
}

/// Where the archive keeps a content.
fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hash(bytes))
}

fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    /// The files of an archive.
    fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn an_archive_is_whole_and_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.tar", "b.tar"].map(|name| folder.path().join(name));
        for path in &paths {
            write(path, &IMAGES[0], "r.example/mesh-proxy:1", "amd64", b"program").unwrap();
        }
        assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());

        let files = files(&paths[0]);
        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let at = |digest: &Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest = json(&at(&json("index.json")["manifests"][0]["digest"]));
        let config = json(&at(&manifest["config"]["digest"]));
        assert_eq!(config["config"]["User"], "2102:2102");
        let layer = &files[&at(&manifest["layers"][0]["digest"])];
        assert_eq!(manifest["layers"][0]["size"], layer.len());
        let docker = json("manifest.json");
        assert_eq!(docker[0]["RepoTags"][0], "r.example/mesh-proxy:1");
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
        let mut unzipped = Vec::new();
        flate2::read::GzDecoder::new(&layer[..]).read_to_end(&mut unzipped).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hash(&unzipped)));
    }

    #[test]
    fn programs_that_need_libraries_are_told() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_dynamic(&own), "tests are linked dynamically");
        assert!(is_dynamic(b"") && is_dynamic(b"\x7fELF"), "what is no program at all");
    }
}
