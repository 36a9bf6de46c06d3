//! A disk that is really full, under a start and under a run.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Output,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

use crate::harness::{
    eventually,
    kept::{Turn, assert_kept, say, say_until_answered, states},
    runtime::{CONFIG, TestRuntime, final_text},
};

/// Bytes of the small disk: enough for a start and some turns.
const DISK_BYTES: u64 = 12 << 20;

/// A file system of its own, gone with this value.
struct Disk(PathBuf);

impl Disk {
    /// Mounts one at `path`, which is made. `None` where only root may, and this is not root.
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let options = format!("size={DISK_BYTES},mode=0700");
        match mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                #[allow(clippy::print_stdout, reason = "what was not tested must not look tested")]
                {
                    println!(
                        "no small disk could be mounted ({error}): run the chapter `small_disk` as root"
                    );
                }
                None
            }
        }
    }

    /// Fills it to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        for bytes in [64 << 10, 4 << 10, 1] {
            while filler.write_all(&vec![b'x'; bytes]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One run that is expected to end by itself.
fn run(directory: &Path) -> Output {
    std::fs::write(directory.join("interlock.toml"), CONFIG).unwrap();
    std::fs::create_dir(directory.join("tmp")).unwrap();
    TestRuntime::command(directory).output().unwrap()
}

#[test]
fn a_full_disk_refuses_turns_and_loses_none_and_space_brings_everything_back() {
    let mut disk = None;
    let runtime = TestRuntime::begin_with("", |command| {
        let data = command.get_args().last().map(PathBuf::from).unwrap();
        disk = Disk::mount(data);
    });
    let Some(disk) = disk else { return };
    let mut runtime = runtime;
    runtime.wait_until_ready();
    let mut acknowledged: Vec<Turn> = vec![say_until_answered(&runtime, "disk", "before")];
    let filler = disk.fill();
    let mut refused = 0;
    let large = "x".repeat(20_000);
    for number in 0..30 {
        match say(&runtime, "disk", &format!("{number} {large}")) {
            Some(turn) => acknowledged.push(turn),
            None => refused += 1,
        }
    }
    assert!(refused > 0, "the disk was not full");
    eventually("status to say that the store cannot write", || {
        let status = runtime.interlock(&["status"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        said.contains("cannot write: the last ").then(|| {
            assert_eq!(status.status.code(), Some(3), "{said}");
            assert!(said.starts_with("interlock ") && said.contains(" degraded, process "), "{said}");
        })
    });
    assert!(runtime.process.is_alive(), "a full disk does not end the runtime");
    std::fs::remove_file(filler).unwrap();
    acknowledged.push(say_until_answered(&runtime, "disk", "after"));
    eventually("every child to be ready again", || {
        let states = states(&runtime);
        (!states.is_empty() && states.iter().all(|(_, state)| state == "running")).then_some(())
    });
    assert_kept(&runtime, "disk", &acknowledged);
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    runtime.restart();
    assert_kept(&runtime, "disk", &acknowledged);
    runtime.process.kill();
    eventually("its processes to go", || runtime.processes().is_empty().then_some(()));
}

#[test]
fn a_start_on_a_full_disk_ends_with_6_or_7_and_leaves_nothing_that_harms_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(directory.path().join("data")) else { return };
    let filler = disk.fill();
    let output = run(directory.path());
    assert!([Some(6), Some(7)].contains(&output.status.code()), "{output:?}");
    assert!(message(&output).contains(disk.0.to_str().unwrap()), "{output:?}");
    std::fs::remove_file(filler).unwrap();
    let runtime = TestRuntime::on(directory);
    runtime.wait_until_ready();
    final_text(&runtime.turn("disk", "Hello"));
    drop(runtime);
}
