//! How many pods a workload should have, and which step comes next.
//!
//! A pure function from what is to what should happen now. The supervisor calls it after every
//! change until it has nothing more to say; then the rollout is complete. Ready pods are never
//! fewer than wanted on the way: new ones are ready before old ones leave.

/// How old pods are replaced by new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// With at most this many pods too many; at least 1.
    Rolling { surge: u32 },
    /// All old ones go before the first new one comes.
    Recreate,
}

/// A pod that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing<'a> {
    pub name: &'a str,
    /// Made from the present template.
    pub current: bool,
    pub state: PodState,
    /// Larger is younger.
    pub ordinal: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    Starting,
    Ready,
    /// Told to go, not gone yet.
    Leaving,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub create: u32,
    /// Names of pods that should leave.
    pub remove: Vec<String>,
}

/// The next step towards `replicas` pods of the present template.
pub fn step(replicas: u32, strategy: Strategy, pods: &[Existing<'_>]) -> Step {
    let staying = || pods.iter().filter(|pod| pod.state != PodState::Leaving);
    let mut current: Vec<_> = staying().filter(|pod| pod.current).collect();
    let mut old: Vec<_> = staying().filter(|pod| !pod.current).collect();
    // Those that serve are kept longest, and of these the oldest.
    current.sort_by_key(|pod| (pod.state != PodState::Ready, pod.ordinal));
    old.sort_by_key(|pod| (pod.state == PodState::Ready, pod.ordinal));

    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let mut remove: Vec<_> = current.iter().skip(wanted).copied().collect();
    let kept = &current[..current.len().min(wanted)];
    let missing = wanted - kept.len();

    let create = match strategy {
        Strategy::Recreate => {
            remove.extend(old.iter().copied());
            let old_gone = pods.iter().all(|pod| pod.current);
            if old_gone { missing } else { 0 }
        }
        Strategy::Rolling { surge } => {
            let ready = kept.iter().filter(|pod| pod.state == PodState::Ready).count();
            remove.extend(leaving_now(&old, wanted - ready.min(wanted)));
            let room = wanted.saturating_add(usize::try_from(surge.max(1)).unwrap_or(1));
            let live = kept.len() + old.len();
            missing.min(room.saturating_sub(live))
        }
    };
    Step {
        create: u32::try_from(create).unwrap_or(u32::MAX),
        remove: remove.into_iter().map(|pod| pod.name.to_owned()).collect(),
    }
}

/// The old pods nobody needs: those that never served, and all ready ones but the `needed` youngest.
fn leaving_now<'a>(old: &[&'a Existing<'a>], needed: usize) -> Vec<&'a Existing<'a>> {
    let (ready, starting): (Vec<_>, Vec<_>) =
        old.iter().copied().partition(|pod| pod.state == PodState::Ready);
    let spare = ready.len().saturating_sub(needed);
    starting.into_iter().chain(ready.into_iter().take(spare)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use PodState::{Leaving, Ready, Starting};

    const ROLLING: Strategy = Strategy::Rolling { surge: 1 };

    fn pods(list: &[(&'static str, bool, PodState)]) -> Vec<Existing<'static>> {
        list.iter()
            .zip(1..)
            .map(|((name, current, state), ordinal)| Existing {
                name,
                current: *current,
                state: *state,
                ordinal,
            })
            .collect()
    }

    fn next(replicas: u32, strategy: Strategy, list: &[(&'static str, bool, PodState)]) -> Step {
        step(replicas, strategy, &pods(list))
    }

    fn create(create: u32) -> Step {
        Step { create, remove: vec![] }
    }

    fn remove(names: &[&str]) -> Step {
        Step { create: 0, remove: names.iter().map(|&n| n.to_owned()).collect() }
    }

    #[test]
    fn nothing_becomes_all_at_once() {
        assert_eq!(next(3, ROLLING, &[]), create(3));
        assert_eq!(next(3, Strategy::Recreate, &[]), create(3));
    }

    #[test]
    fn a_complete_rollout_needs_nothing() {
        assert_eq!(next(1, ROLLING, &[("a", true, Ready)]), Step::default());
        assert_eq!(next(0, ROLLING, &[("a", false, Leaving)]), Step::default());
    }

    #[test]
    fn a_leaving_pod_is_replaced_but_not_counted() {
        assert_eq!(next(1, ROLLING, &[("a", true, Leaving)]), create(1));
    }

    #[test]
    fn scaling_down_takes_the_unready_then_the_youngest() {
        let list = [("a", true, Ready), ("b", true, Starting), ("c", true, Ready)];
        assert_eq!(next(2, ROLLING, &list), remove(&["b"]));
        assert_eq!(next(1, ROLLING, &list), remove(&["c", "b"]));
        assert_eq!(next(0, ROLLING, &list), remove(&["a", "c", "b"]));
    }

    #[test]
    fn an_old_pod_leaves_when_a_new_one_is_ready() {
        let old = ("a", false, Ready);
        assert_eq!(next(1, ROLLING, &[old]), create(1));
        assert_eq!(next(1, ROLLING, &[old, ("b", true, Starting)]), Step::default());
        assert_eq!(next(1, ROLLING, &[old, ("b", true, Ready)]), remove(&["a"]));
    }

    #[test]
    fn old_pods_that_never_served_leave_at_once() {
        let list = [("a", false, Starting), ("b", false, Ready)];
        assert_eq!(next(2, ROLLING, &list), Step { create: 1, remove: vec!["a".to_owned()] });
    }

    #[test]
    fn recreate_waits_until_the_last_old_one_is_gone() {
        let list = [("a", false, Ready), ("b", false, Starting)];
        assert_eq!(next(2, Strategy::Recreate, &list), remove(&["b", "a"]));
        assert_eq!(next(2, Strategy::Recreate, &[("a", false, Leaving)]), Step::default());
        assert_eq!(next(2, Strategy::Recreate, &[]), create(2));
    }

    /// Plays whole rollouts: every created pod becomes ready, every removed one goes.
    #[test]
    fn rollouts_end_and_never_fall_below_the_replicas() {
        for replicas in 1..8_u32 {
            for old in 0..8_u32 {
                for surge in 1..4 {
                    rollout(replicas, old, surge);
                }
            }
        }
    }

    fn rollout(replicas: u32, old: u32, surge: u32) {
        let names: Vec<String> = (0..200).map(|n| format!("p{n}")).collect();
        let mut pods: Vec<Existing<'_>> = (0..old)
            .map(|n| Existing {
                name: &names[n as usize],
                current: false,
                state: Ready,
                ordinal: n,
            })
            .collect();
        let floor = replicas.min(old) as usize;
        let mut born = old;
        for _ in 0..100 {
            let step = step(replicas, Strategy::Rolling { surge }, &pods);
            if step == Step::default() && pods.iter().all(|pod| pod.state == Ready) {
                assert_eq!(pods.len(), replicas as usize);
                assert!(pods.iter().all(|pod| pod.current));
                return;
            }
            pods.retain(|pod| !step.remove.iter().any(|name| name == pod.name));
            pods.iter_mut().for_each(|pod| pod.state = Ready);
            for _ in 0..step.create {
                let name = &names[born as usize];
                pods.push(Existing { name, current: true, state: Starting, ordinal: born });
                born += 1;
            }
            let ready = pods.iter().filter(|pod| pod.state == Ready).count();
            assert!(ready >= floor, "{replicas} {old} {surge}: {pods:?}");
            assert!(pods.len() <= (replicas + surge).max(old + 1) as usize);
        }
        panic!("the rollout of {replicas} over {old} with surge {surge} does not end: {pods:?}");
    }
}
