//! Who descends from a guardian that cannot end them itself, by what `/proc` says.

use std::{collections::HashSet, fs, os::unix::ffi::OsStrExt, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Looks after which whoever still starts others is left to do so: each look finds only who was begun during the one before.
const LOOKS_MAX: usize = 100;

/// The variable whose value no two guardians share, and which whoever descends from one inherits.
pub(super) const MARK: &str = "NOTIFY_SOCKET";

/// The present children of a process, zombies included.
pub(super) fn children(of: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{of}/task")) else { return Vec::new() };
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

/// Kills all descendants of a guardian that is there: also those that have left the group, which it alone still holds.
pub(super) fn kill_those_of(guardian: Pid) {
    kill_all(|| {
        let mut found = children(guardian);
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            found.extend(children(pid));
            next += 1;
        }
        found
    });
}

/// Kills the descendants of a guardian that is gone: by the socket in their environment. One that has thrown that away, or
/// runs as another user, is not found.
pub(super) fn kill_those_left_with(socket: &Path) {
    let mark = [MARK.as_bytes(), b"=", socket.as_os_str().as_bytes()].concat();
    kill_all(|| {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let carries_it = |entry: &fs::DirEntry| {
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == mark)
        };
        let pids = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            carries_it(&entry).then(|| Pid::from_raw(pid))
        });
        pids.collect()
    });
}

/// Kills whoever is found, until nobody new is.
fn kill_all(find: impl Fn() -> Vec<Pid>) {
    let mut killed = HashSet::new();
    for _ in 0..LOOKS_MAX {
        let mut is_any_new = false;
        for pid in find() {
            if killed.insert(pid) {
                is_any_new = true;
                // An error means that it is gone already.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        if !is_any_new {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    /// Whether this process runs; one that is dead and not yet waited for does not.
    fn runs(pid: &str) -> bool {
        let about = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        about.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.starts_with(" Z"))
    }

    #[test]
    fn the_descendants_of_descendants_are_killed_too() {
        let script = "sh -c 'sh -c \"echo \\$\\$; sleep 600\" & wait' & wait";
        let mut first =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell starts");
        let mut last = String::new();
        let mut lines = BufReader::new(first.stdout.take().expect("it is piped"));
        lines.read_line(&mut last).expect("the third shell tells its number");
        assert!(runs(last.trim()));

        kill_those_of(Pid::from_raw(first.id().cast_signed()));
        let began = Instant::now();
        while runs(last.trim()) {
            assert!(began.elapsed() < Duration::from_secs(30), "the third shell outlives the first one's");
            std::thread::yield_now();
        }
        first.kill().expect("it is ours");
        first.wait().expect("it is ours");
    }
}
