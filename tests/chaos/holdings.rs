//! What a running instance holds of the machine, to be compared before and after a blow.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::harness::{DEADLINE, kept::states, runtime::TestRuntime};

/// Processes, descriptors, threads and files of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holdings {
    processes: usize,
    /// Open descriptors of the runtime's process.
    descriptors: usize,
    threads: usize,
    files: BTreeSet<PathBuf>,
}

impl Holdings {
    pub(super) fn of(runtime: &TestRuntime) -> Self {
        let process = PathBuf::from(format!("/proc/{}", runtime.process.id()));
        // Hidden from all but root, because the process holds keys; then there is nothing to compare.
        let count = |what: &str| std::fs::read_dir(process.join(what)).map_or(0, Iterator::count);
        let mut files = BTreeSet::new();
        collect(runtime.directory.path(), &mut files);
        Self {
            processes: runtime.processes().len(),
            descriptors: count("fd"),
            threads: count("task"),
            files: files.into_iter().map(nameless).collect(),
        }
    }

    /// What is held here and was not there.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        for (what, now, then) in [
            ("processes", self.processes, before.processes),
            ("descriptors", self.descriptors, before.descriptors),
            ("threads", self.threads, before.threads),
        ] {
            if now > then {
                more.push(format!("{now} {what} instead of {then}"));
            }
        }
        more.extend(self.files.difference(&before.files).map(|file| format!("file {}", file.display())));
        more
    }
}

/// The directory of a guardian has a random name: that it is there counts, not its name.
fn nameless(file: PathBuf) -> PathBuf {
    match file.components().any(|part| part.as_os_str() == "tmp") {
        true => file.parent().unwrap().with_file_name("of a guardian").join(file.file_name().unwrap()),
        false => file,
    }
}

fn collect(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            // One each for as long as there are keys; they come with the first change, and some seconds after the first use.
            _ if ["audit.taken", "last-use.json"].iter().any(|name| entry.file_name() == *name) => {}
            _ => drop(files.insert(entry.path())),
        }
    }
}

/// Waits until every child runs, the accounts balance, and no more is held than `before`: what is on its way out may take its
/// time, within the deadline.
pub(super) fn assert_recovered(runtime: &TestRuntime, before: &Holdings) {
    until(|| {
        let states = states(runtime);
        match !states.is_empty() && states.iter().all(|(_, state)| state == "running") {
            true => Ok(()),
            false => Err(format!("not all children run: {states:?}")),
        }
    });
    let audit = runtime.bus(&["audit"]);
    assert!(audit.status.success(), "the ledger does not balance: {audit:?}");
    until(|| {
        let more = Holdings::of(runtime).beyond(before);
        if more.is_empty() { Ok(()) } else { Err(format!("more is held than before: {more:#?}")) }
    });
}

/// Waits until `probe` is content; its last complaint is why the test fails.
pub(super) fn until(mut probe: impl FnMut() -> Result<(), String>) {
    // A child whose failures have grown its backoff may be waiting for it.
    let deadline = Instant::now() + DEADLINE * 2;
    while let Err(complaint) = probe() {
        assert!(Instant::now() < deadline, "{complaint}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
