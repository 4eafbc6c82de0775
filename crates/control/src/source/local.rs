//! The local source: manifests and pods of this machine, from files.
//!
//! `DIR/manifests` holds what a user applied, `DIR/pods` what the supervisor reports of each pod,
//! as a kubelet would. Both are watched; a change is in force within some 20 ms, or as soon as
//! somebody asks ([`Shared::refresh`]). A file that is wrong is reported with its line and field,
//! and its last good state stays in force.
//!
//! Read [`state`] for what the files mean; here is only when they are looked at.

mod addresses;
pub(crate) mod manifest;
pub mod state;
#[cfg(test)]
mod tests;
pub mod yaml;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::state::{Change, State};
use super::{Problem, Severity};
use crate::index::identity::MeshNames;
use crate::state::Shared;

/// Writers often touch a file several times in a row.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Looks at everything anyway, in case the system lost an event without saying so.
const RESCAN: Duration = Duration::from_secs(10);
/// The same when the system cannot report changes at all.
const POLL: Duration = Duration::from_secs(1);
/// When more files than this changed at once they are found by looking at all.
const MAX_DIRTY: usize = 4096;

/// Keeps the index as the files in `dir` say; policies mean identities with these names. Never returns.
pub async fn run(dir: PathBuf, names: MeshNames, shared: Arc<Shared>) {
    let dirty = Arc::new(Dirty::default());
    // Kept alive: it stops when dropped.
    let (watcher, warning) = match watch(&dir, Arc::clone(&dirty)) {
        Ok(watcher) => (Some(watcher), None),
        Err(error) => {
            tracing::warn!(%error, "cannot watch the files; looking at them every second");
            (None, Some(cannot_watch(&dir, &error)))
        }
    };
    let rescan = if watcher.is_some() { RESCAN } else { POLL };
    let mut state = State::with_names(&dir, names.clone());
    let mut looks_wanted = shared.watch_looks_wanted();
    loop {
        let look = *looks_wanted.borrow_and_update();
        let paths = dirty.take();
        let scanned = tokio::task::spawn_blocking(move || {
            let result = state.scan(&paths);
            let problems = state.problems();
            (state, result, problems)
        });
        let (back, result, mut problems) = match scanned.await {
            Ok(scanned) => scanned,
            Err(error) => {
                tracing::error!(%error, "reading the files failed; starting over");
                state = State::with_names(&dir, names.clone());
                continue;
            }
        };
        state = back;
        problems.extend(warning.clone());
        match result {
            Ok(changes) => {
                apply(&shared, changes);
                shared.set_problems(problems);
                shared.set_ready();
                shared.set_looked(look);
            }
            Err(error) => tracing::warn!(%error, dir = %dir.display(), "cannot list the files"),
        }
        tokio::select! {
            () = dirty.settled(rescan) => {}
            // Who asks has written all that is meant, and waits.
            Ok(()) = looks_wanted.changed() => {}
        }
    }
}

fn apply(shared: &Shared, changes: Vec<Change>) {
    if changes.is_empty() {
        return;
    }
    let mut index = shared.index.write();
    let mut batch = index.batch();
    for change in changes {
        match change {
            Change::Apply(object) => batch.apply(*object),
            Change::Delete(key) => batch.delete(&key),
        }
    }
}

/// Files that changed, as the system says.
#[derive(Debug, Default)]
struct Dirty {
    paths: Mutex<HashSet<PathBuf>>,
    changed: Notify,
}

impl Dirty {
    fn take(&self) -> HashSet<PathBuf> {
        std::mem::take(&mut *self.paths.lock())
    }

    /// Waits for a change and for its writer to be done, or for `limit`. An event that came during
    /// a scan has left its permit, so none is missed.
    async fn settled(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.changed.notified()).await.is_ok() {
            tokio::time::sleep(DEBOUNCE).await;
        }
    }
}

fn watch(dir: &Path, dirty: Arc<Dirty>) -> notify::Result<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
            Ok(event) => {
                let mut paths = dirty.paths.lock();
                if paths.len() < MAX_DIRTY {
                    paths.extend(event.paths);
                }
            }
            Err(error) => tracing::warn!(%error, "watching the files failed once"),
        }
        dirty.changed.notify_one();
    };
    let mut watcher = notify::recommended_watcher(handler)?;
    for folder in ["manifests", "pods"] {
        let folder = dir.join(folder);
        std::fs::create_dir_all(&folder)?;
        watcher.watch(&folder, RecursiveMode::Recursive)?;
    }
    Ok(watcher)
}

fn cannot_watch(dir: &Path, error: &notify::Error) -> Problem {
    Problem {
        severity: Severity::Warning,
        object: String::new(),
        file: Some(dir.to_owned()),
        line: 0,
        field: String::new(),
        message: format!(
            "changes are found within a second only, the system cannot report them: {error}; \
             raise fs.inotify.max_user_watches and fs.inotify.max_user_instances"
        ),
    }
}
