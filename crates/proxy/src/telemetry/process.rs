//! `process_*` and `proxy_build_info`, read from the kernel at a scrape.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Clock ticks a second in `/proc/self/stat`; fixed by the kernel's interface to user space.
const TICKS: f64 = 100.0;

pub(super) fn register(registry: &mut Registry) {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let info = Family::<[(&'static str, &'static str); 2], Gauge<u64, AtomicU64>>::default();
    info.get_or_create(&[("version", env!("CARGO_PKG_VERSION")), ("profile", profile)]).set(1);
    registry.register("proxy_build_info", "What this proxy was built from", info);

    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.register_collector(Box::new(Process { started }));
}

#[derive(Debug)]
struct Process {
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => {
                let kind = MetricType::Gauge;
                encoder.encode_descriptor(name, help, None, kind)?.encode_gauge(&value)
            }
            None => Ok(()),
        };
        gauge("process_start_time_seconds", "When the process started", Some(self.started))?;
        let fds = std::fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count() as f64);
        gauge("process_open_fds", "Open files and sockets", fds)?;
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        gauge("process_max_fds", "Files and sockets that may be open", max_fds(&limits))?;

        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields = Stat::parse(&stat);
        let threads = fields.as_ref().map(|stat| stat.threads);
        gauge("process_threads", "Threads", threads)?;
        let virt = fields.as_ref().map(|stat| stat.virtual_bytes);
        gauge("process_virtual_memory_bytes", "Address space in use", virt)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        gauge("process_resident_memory_bytes", "Memory in use", resident_bytes(&status))?;
        if let Some(stat) = fields {
            let (name, help) = ("process_cpu_seconds", "CPU time, in user space and the kernel");
            let mut cpu = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            cpu.encode_counter(&stat.cpu_seconds, None::<&Exemplar<NoLabelSet, f64>>)?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    virtual_bytes: f64,
}

impl Stat {
    /// The line's second field is a name in parentheses that may itself hold spaces and
    /// parentheses, so fields are counted from behind the last one.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<f64> = rest.split(' ').map(|f| f.trim().parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let (user, system) = (field(14)?, field(15)?);
        let cpu_seconds = (user + system) / TICKS;
        Some(Self { cpu_seconds, threads: field(20)?, virtual_bytes: field(23)? })
    }
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

fn max_fds(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 9 8192 20 1\n";
        let expected = Stat { cpu_seconds: 3.0, threads: 3.0, virtual_bytes: 8192.0 };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("7 (x"), None);
        assert_eq!(Stat::parse("7 (x) S 1"), None);
    }

    #[test]
    fn memory_and_files_are_read_from_their_lines() {
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    12 kB\n"), Some(12_288.0));
        assert_eq!(resident_bytes(""), None);
        let limits = "Max processes 1 1\nMax open files            1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024.0));
        assert_eq!(max_fds("Max open files unlimited unlimited files"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(Stat::parse(&stat).unwrap().threads >= 1.0);
        assert!(resident_bytes(&std::fs::read_to_string("/proc/self/status").unwrap()) > Some(0.0));
    }
}
