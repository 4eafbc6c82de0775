//! What the kernel says about this machine: which cores to use, who used how much CPU time, who holds how much memory.
//!
//! A measurement is disturbed when programs other than its own used one of the two cores meanwhile. The bench waits for
//! quiet as long as its [`Patience`] lasts, and says which figures were disturbed all the same.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two different cores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
}

impl Cores {
    /// The first two this process may use.
    pub(crate) fn pick() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("which cores may be used")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        match (cores.next(), cores.next()) {
            (Some(proxy), Some(load)) => Ok(Self { proxy, load }),
            _ => bail!("two cores are needed: one for proxies, one for load and backend"),
        }
    }
}

/// Confines this thread, and the threads and processes it starts from now on, to one core.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("pinning to core {core}"))
}

/// A thousand idle connections are two thousand descriptors of this process, and as many of a proxy.
pub(crate) fn allow_many_files() -> anyhow::Result<()> {
    const NEEDED: u64 = 4096;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < NEEDED) {
        bail!("{NEEDED} open files are needed; raise the hard limit (ulimit -Hn)");
    }
    limit.current = limit.maximum.map(|maximum| maximum.min(65_536));
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

/// CPU time, in user mode and in the kernel, of all threads of a process so far.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        // A thread may end between being listed and being read.
        let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let ran = stat.split_whitespace().next();
        nanos += ran
            .and_then(|ran| ran.parse::<u64>().ok())
            .context("/proc/PID/task/TID/schedstat does not begin with nanoseconds")?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .context("/proc/PID/status has no VmRSS")
}

/// The processor's name and the kernel's release, for the head of a report.
pub(crate) fn describe(cores: Cores) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = cpuinfo.matches("processor\t").count();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{model}, {count} cores, Linux {}; proxies on core {}, load and backend on core {}",
        release.trim(),
        cores.proxy,
        cores.load
    )
}

/// Time the two cores spent on anything, stolen time included.
fn busy(cores: Cores) -> anyhow::Result<Duration> {
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    const COUNTED: [usize; 6] = [0, 1, 2, 5, 6, 7];
    let stat = fs::read_to_string("/proc/stat")?;
    let mut ticks = 0;
    for core in [cores.proxy, cores.load] {
        let fields = stat
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cpu{core} ")))
            .with_context(|| format!("/proc/stat has no core {core}"))?;
        let fields: Vec<u64> = fields.split(' ').flat_map(str::parse).collect();
        ticks += COUNTED.iter().filter_map(|&index| fields.get(index)).sum::<u64>();
    }
    Ok(Duration::from_millis(ticks * 10))
}

/// CPU time at one moment: of everybody, and of those a measurement is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    at: Instant,
    busy: Duration,
    own: Duration,
    /// Of all programs that requests pass.
    pub(crate) proxy: Duration,
}

impl Usage {
    pub(crate) fn now(cores: Cores, proxies: &[u32]) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            busy: busy(cores)?,
            own: cpu_time(std::process::id())?,
            proxy: proxies.iter().map(|pid| cpu_time(*pid)).sum::<anyhow::Result<_>>()?,
        })
    }

    /// The share of the two cores that others took between `self` and `later`: 0 to 1.
    pub(crate) fn foreign(&self, later: &Self) -> f64 {
        let busy = later.busy.saturating_sub(self.busy);
        let ours = (later.own + later.proxy).saturating_sub(self.own + self.proxy);
        let available = 2.0 * later.at.duration_since(self.at).as_secs_f64();
        busy.saturating_sub(ours).as_secs_f64() / available
    }
}

/// More than this share of the cores in other hands, and figures are called disturbed.
pub(crate) const DISTURBED: f64 = 0.04;

/// How much longer the whole run may wait for other programs to be quiet.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub(crate) fn new(left: Duration) -> Self {
        Self { left }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// Returns when the cores have been quiet for a moment, or when patience is over.
    pub(crate) fn wait_for_quiet(&mut self, cores: Cores) -> anyhow::Result<()> {
        const MOMENT: Duration = Duration::from_millis(200);
        while !self.is_over() {
            let before = Usage::now(cores, &[])?;
            crate::pause(MOMENT);
            if before.foreign(&Usage::now(cores, &[])?) <= DISTURBED {
                break;
            }
            self.spend(MOMENT);
        }
        Ok(())
    }

    pub(crate) fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}
