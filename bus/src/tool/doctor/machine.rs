//! What the machine allows: limits of processes, and room on the disk.

use std::path::Path;

use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::statvfs,
};

use super::{Finding, Instance, Patient, quoted};
use crate::{exit::Exit, limits};

/// Free bytes below which a warning is due, and a failure: the store's own journal takes tens of megabytes.
const DISK_BYTES: (u64, u64) = (1 << 30, 64 << 20);
/// Free inodes below which a warning is due, and a failure: an instance has some dozens of files.
const INODES: (u64, u64) = (10_000, 100);

pub(super) fn examine(patient: &Patient, sessions_max: Option<u64>) -> Vec<Finding> {
    let mut findings =
        vec![open_files(patient.instance.as_ref(), sessions_max), core(patient.instance.as_ref())];
    if let Some(data) = patient.data.as_ref().filter(|data| data.exists()) {
        findings.extend(disk(data));
    }
    findings
}

/// A limit of the instance's process, as the system shows it: soft and hard. `None` if it does not run here.
fn of_process(instance: Option<&Instance>, name: &str) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{}/limits", instance?.pid)).ok()?;
    let mut values = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    let mut value = || match values.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((value()?, value()?))
}

/// Whether the broker can have as many sessions as it would.
fn open_files(instance: Option<&Instance>, sessions_max: Option<u64>) -> Finding {
    const CHECK: &str = "limits.open_files";
    let sessions = sessions_max.unwrap_or(limits::SESSIONS_MAX as u64);
    let needed = sessions + limits::DESCRIPTORS_RESERVED as u64;
    let (whose, most) = match of_process(instance, "Max open files") {
        Some((soft, _)) => ("the instance", soft),
        // A broker takes all it is allowed to.
        None => ("a broker started here", getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard)),
    };
    let room = most.saturating_sub(limits::DESCRIPTORS_RESERVED as u64);
    if most >= needed {
        return Finding::ok(CHECK, format!("{whose} may open {most} files, enough for {sessions} sessions"));
    }
    let found = format!("{whose} may open {most} files, which is room for {room} of {sessions} sessions");
    Finding::warn(CHECK, found).remedy(format!("ulimit -n {needed}"))
}

/// Whether a crash could leave keys on the disk.
fn core(instance: Option<&Instance>) -> Finding {
    const CHECK: &str = "limits.core";
    match of_process(instance, "Max core file size") {
        Some((0, _)) => Finding::ok(CHECK, "the instance leaves no core (0 bytes)"),
        Some((bytes, _)) => {
            let size = if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{bytes} bytes") };
            let found = format!("the instance may leave a core with keys in it ({size})");
            let pid = instance.map_or(0, |instance| instance.pid);
            Finding::warn(CHECK, found).remedy(format!("prlimit --core=0 --pid {pid}"))
        }
        None => Finding::ok(CHECK, "no instance runs here; both programs forbid cores to themselves"),
    }
}

fn disk(data: &Path) -> Vec<Finding> {
    let shown = data.display();
    let space = match statvfs(data) {
        Ok(space) => space,
        Err(error) => {
            return vec![Finding::fail(
                "disk.space",
                Exit::Io,
                format!("cannot look at the disk of `{shown}`: {error}"),
            )];
        }
    };
    let bytes = space.blocks_available().saturating_mul(space.fragment_size());
    let place = quoted(data);
    let megabytes = format!("{} MB free at `{shown}`", bytes / 1_000_000);
    let mut findings = vec![judged("disk.space", bytes, DISK_BYTES, megabytes, format!("df -h {place}"))];
    // Some file systems count none.
    let (inodes, all) = (space.files_available(), space.files());
    findings.push(match all {
        0 => Finding::ok("disk.inodes", format!("the file system of `{shown}` has no limit of files")),
        _ => judged(
            "disk.inodes",
            inodes,
            INODES,
            format!("{inodes} of {all} inodes free"),
            format!("df -i {place}"),
        ),
    });
    findings
}

/// What an amount means, given where a warning and a failure begin.
fn judged(
    check: &'static str,
    amount: u64,
    (warn, fail): (u64, u64),
    found: String,
    remedy: String,
) -> Finding {
    match amount {
        _ if amount < fail => Finding::fail(check, Exit::Full, found).remedy(remedy),
        _ if amount < warn => Finding::warn(check, found).remedy(remedy),
        _ => Finding::ok(check, found),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn little_room_is_a_warning_and_none_a_failure() {
        let level = |amount| judged("disk.space", amount, (100, 10), String::new(), String::new());
        assert_eq!(
            [level(100), level(99), level(9)].map(|finding| finding.level),
            [Level::Ok, Level::Warn, Level::Fail]
        );
        assert_eq!(level(9).exit, Exit::Full);
    }

    #[test]
    fn limits_are_those_of_the_instance() {
        let instance = Instance { pid: std::process::id() };
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(of_process(Some(&instance), "Max open files"), Some((soft, hard)));
        assert_eq!(open_files(Some(&instance), Some(soft)).level, Level::Warn);
        assert_eq!(
            open_files(Some(&instance), Some(1)).level,
            if soft >= 257 { Level::Ok } else { Level::Warn }
        );
    }
}
