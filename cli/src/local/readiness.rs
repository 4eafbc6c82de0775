//! Whether the programs of a pod are ready: readiness probes with their thresholds.
//!
//! A container without a probe is ready once something answers on its first port, so that nobody sends it
//! requests it would refuse; one without ports, as soon as it runs.

use std::time::Duration;

use tokio::time::Instant;

use super::environment::Wiring;
use super::keeper::KeptStatus;
use super::probe::Dialer;
use super::process::ProcessId;
use super::workload::{Check, Container, Probe};

/// How often a pod without probes is looked at.
const DEFAULT_PERIOD: Duration = Duration::from_secs(10);

/// The probes of a pod's containers and what they found lately.
#[derive(Debug)]
pub struct Readiness {
    containers: Vec<Probed>,
}

#[derive(Debug)]
struct Probed {
    name: String,
    probe: Option<Probe>,
    /// A probe we made up asks until the first answer only.
    once: bool,
    found: Found,
}

/// What the probes of one process found.
#[derive(Debug, Default)]
struct Found {
    process: Option<ProcessId>,
    since: Option<Instant>,
    ready: bool,
    successes: u32,
    failures: u32,
}

impl Readiness {
    pub fn of(containers: &[Container]) -> Self {
        let containers = containers.iter().map(|container| {
            let made_up = || container.ports.first().map(|port| answering(port.port));
            Probed {
                name: container.name.clone(),
                probe: container.readiness.clone().or_else(made_up),
                once: container.readiness.is_none(),
                found: Found::default(),
            }
        });
        Self { containers: containers.collect() }
    }

    /// How often to ask while all is well.
    pub fn period(&self) -> Duration {
        let probes = self.containers.iter().filter(|probed| !probed.once);
        let periods = probes.filter_map(|probed| probed.probe.as_ref()).map(|probe| probe.period);
        periods.min().unwrap_or(DEFAULT_PERIOD)
    }

    /// Asks a container. The error says what it lacks.
    pub async fn ask(
        &mut self,
        index: usize,
        status: &KeptStatus,
        wiring: &Wiring,
        dialer: &Dialer,
        now: Instant,
    ) -> Result<(), String> {
        let Some(probed) = self.containers.get_mut(index) else { return Ok(()) };
        let name = probed.name.clone();
        let lacking = |what: &str| Err(format!("{name}: {what}"));
        let Some(process) = status.running() else {
            probed.found = Found::default();
            return match &status.last_exit {
                Some(exit) => lacking(&format!("{exit}, restarted {} times", status.restarts)),
                None => lacking("not started yet"),
            };
        };
        let Some(probe) = &probed.probe else { return Ok(()) };
        let found = &mut probed.found;
        if found.process != Some(process) {
            *found = Found { process: Some(process), since: Some(now), ..Found::default() };
        }
        if probed.once && found.ready {
            return Ok(());
        }
        if found.since.is_some_and(|since| now < since + probe.initial_delay) {
            return lacking("the initial delay of its readiness probe runs");
        }
        let app_port = match probe.check {
            Check::Http { port, .. } | Check::Tcp { port } => {
                wiring.ports.iter().find(|map| map.declared == port).map_or(port, |map| map.app)
            }
        };
        let answer = dialer.check(&probe.check, wiring.ip, app_port, probe.timeout).await;
        match found.take(probe, answer) {
            None => Ok(()),
            Some(what) => lacking(&what),
        }
    }
}

impl Found {
    /// Counts an answer. Returns what is lacking, if the container is not ready.
    fn take(&mut self, probe: &Probe, answer: Result<(), String>) -> Option<String> {
        match answer {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.ready |= self.successes >= probe.success_threshold;
                (!self.ready).then(|| "too few good answers yet".to_owned())
            }
            Err(what) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.ready &= self.failures < probe.failure_threshold;
                (!self.ready).then_some(what)
            }
        }
    }
}

fn answering(port: u16) -> Probe {
    Probe {
        check: Check::Tcp { port },
        initial_delay: Duration::ZERO,
        period: DEFAULT_PERIOD,
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::keeper::State;
    use crate::local::pod::tests::spec;
    use tokio::net::TcpSocket;

    /// A pod whose application is where this socket is bound.
    fn wiring_to(socket: &TcpSocket) -> Wiring {
        let mut wiring = spec().wiring;
        wiring.ip = std::net::Ipv4Addr::LOCALHOST;
        wiring.ports[0].app = socket.local_addr().unwrap().port();
        wiring
    }

    fn running(pid: u32) -> KeptStatus {
        let process = ProcessId { pid, start_time: 1 };
        KeptStatus { state: State::Running(process), restarts: 0, last_exit: None }
    }

    fn bad() -> Result<(), String> {
        Err("503".to_owned())
    }

    #[test]
    fn thresholds_count_answers_in_a_row() {
        let probe = Probe { success_threshold: 2, ..answering(1) };
        let mut found = Found::default();
        assert!(found.take(&probe, Ok(())).is_some());
        assert!(found.take(&probe, bad()).is_some());
        assert!(found.take(&probe, Ok(())).is_some());
        assert_eq!(found.take(&probe, Ok(())), None);
        assert_eq!(found.take(&probe, bad()), None);
        assert_eq!(found.take(&probe, bad()), None);
        assert_eq!(found.take(&probe, bad()).as_deref(), Some("503"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_probe_the_first_answer_decides_until_a_restart() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let wiring = wiring_to(&socket);
        let taken = socket.local_addr().unwrap();
        let listener = socket.listen(8).unwrap();
        let mut readiness = Readiness::of(&wiring.template.containers);
        let (dialer, now) = (Dialer::default(), Instant::now());
        assert_eq!(readiness.ask(0, &running(1), &wiring, &dialer, now).await, Ok(()));
        drop(listener);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(taken).unwrap();
        assert_eq!(readiness.ask(0, &running(1), &wiring, &dialer, now).await, Ok(()));
        let error = readiness.ask(0, &running(2), &wiring, &dialer, now).await.unwrap_err();
        assert!(error.starts_with("web: nothing answers on port"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_is_not_ready_and_the_delay_starts_anew() {
        // Bound, so that nobody else is there, but not listening.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut wiring = wiring_to(&socket);
        let probe = Probe { initial_delay: Duration::from_secs(5), ..answering(8080) };
        wiring.template.containers[0].readiness = Some(probe);
        let mut readiness = Readiness::of(&wiring.template.containers);
        let (dialer, now) = (Dialer::default(), Instant::now());
        let ended = KeptStatus {
            state: State::BackingOff,
            restarts: 2,
            last_exit: Some("exit code 1".to_owned()),
        };
        let error = readiness.ask(0, &ended, &wiring, &dialer, now).await.unwrap_err();
        assert_eq!(error, "web: exit code 1, restarted 2 times");
        let error = readiness.ask(0, &running(1), &wiring, &dialer, now).await.unwrap_err();
        assert!(error.contains("initial delay"), "{error}");
        let later = now + Duration::from_secs(5);
        let error = readiness.ask(0, &running(1), &wiring, &dialer, later).await.unwrap_err();
        assert!(error.contains("nothing answers"), "{error}");
    }
}
