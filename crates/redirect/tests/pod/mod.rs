//! Two network namespaces joined by a veth pair: the pod, in which a stand-in for the proxy listens, and the
//! world.

use std::fs::File;
use std::io::{Read, Write, stderr};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use mesh_redirect::Redirect;
use rustix::thread::{Gid, LinkNameSpaceType, Uid};
use socket2::{Domain, SockRef, Socket, Type};

pub(crate) const PROXY_UID: u32 = 2102;
/// Of anything that should take no time.
const LIMIT: Duration = Duration::from_secs(20);

/// Goes past the test runner's capturing of output.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(stderr(), "SKIPPED: {test}: {why}");
}

pub(crate) struct Pod {
    name: String,
    world: String,
}

impl Pod {
    /// `None`, said loudly, where namespaces cannot be made.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped(test, "not root");
            return None;
        }
        let name = format!("redirect-{}-{test}", std::process::id());
        // Taken apart by its end, however much of it there is.
        let pod = Self { world: format!("{name}-world"), name };
        if let Err(why) = pod.wire() {
            // In a container even root often may not.
            skipped(test, &why);
            return None;
        }
        for addr in ["127.0.0.1:4140", "[::1]:4140", "[::]:4143"] {
            listen_in(&pod.name, addr.parse().unwrap());
        }
        Some(pod)
    }

    fn wire(&self) -> Result<(), String> {
        let (name, world) = (&self.name, &self.world);
        let mut commands = format!(
            "netns add {name}\nnetns add {world}\n\
             -n {name} link add eth0 type veth peer name eth0 netns {world}\n"
        );
        for (netns, number) in [(name, 1), (world, 2)] {
            commands += &format!(
                "-n {netns} link set lo up\n\
                 -n {netns} addr add 10.9.0.{number}/24 dev eth0\n\
                 -n {netns} addr add fd09::{number}/64 dev eth0 nodad\n\
                 -n {netns} link set eth0 up\n"
            );
        }
        commands.lines().try_for_each(ip)
    }

    pub(crate) fn install(&self, redirect: &Redirect) {
        self.inside(|| mesh_redirect::install(redirect)).unwrap();
    }

    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        inside(&self.name, None, run)
    }

    pub(crate) fn inside_as<T: Send>(&self, uid: u32, run: impl FnOnce() -> T + Send) -> T {
        inside(&self.name, Some(uid), run)
    }

    /// Listens on all addresses of the pod.
    pub(crate) fn listen(&self, port: u16) {
        listen_in(&self.name, format!("[::]:{port}").parse().unwrap());
    }

    pub(crate) fn listen_in_world(&self, port: u16) {
        listen_in(&self.world, format!("[::]:{port}").parse().unwrap());
    }

    /// Who answers, and which destination it was told.
    pub(crate) fn connect(&self, to: SocketAddr) -> String {
        self.inside(|| ask(to))
    }

    pub(crate) fn connect_as(&self, uid: u32, to: SocketAddr) -> String {
        self.inside_as(uid, || ask(to))
    }

    pub(crate) fn connect_from_world(&self, to: SocketAddr) -> String {
        inside(&self.world, None, || ask(to))
    }

    /// `None` if there is no table, or no `nft`.
    pub(crate) fn nft_list(&self) -> Option<String> {
        let command = ["netns", "exec", &self.name, "nft", "list", "table", "inet", "mesh"];
        let output = Command::new("ip").args(command).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for netns in [&self.name, &self.world] {
            let _ = ip(&format!("netns delete {netns}"));
        }
    }
}

fn ip(command: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(command.split(' ')).output();
    let ran = ran.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if ran.status.success() { Ok(()) } else { Err(format!("ip {command}: {}", said.trim())) }
}

/// Runs it on a thread of its own that is in the namespace, as that user.
fn inside<T: Send>(netns: &str, uid: Option<u32>, run: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(format!("/run/netns/{netns}")).unwrap();
    let enter = || {
        let network = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(netns.as_fd(), network).unwrap();
        if let Some(uid) = uid {
            rustix::thread::set_thread_gid(Gid::from_raw(uid)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(uid)).unwrap();
        }
        run()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

fn ask(to: SocketAddr) -> String {
    let mut stream = match TcpStream::connect_timeout(&to, LIMIT) {
        Ok(stream) => stream,
        Err(error) => return format!("{to}: {error}"),
    };
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Answers every connection with the listener's port and where the connection was going.
fn listen_in(netns: &str, addr: SocketAddr) {
    let listener: TcpListener = inside(netns, None, || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified()).unwrap();
        }
        socket.bind(&addr.into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    });
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let local = stream.local_addr().unwrap();
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            let socket = SockRef::from(&stream);
            let original =
                if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
            let original = original.ok().and_then(|original| original.as_socket());
            let told = match original.filter(|original| *original != local) {
                Some(original) => original.to_string(),
                None => "direct".to_owned(),
            };
            // A client that is gone has failed its test.
            let _ = write!(stream, "{} {told}", addr.port());
        }
    });
}
