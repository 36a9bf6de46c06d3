use std::{
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::harness::{
    TestProcess, eventually,
    runtime::{CONFIG, TestRuntime},
};

/// How often it is logged.
const TIMES: usize = 10_000;
/// What must not be found. The configuration, which names it too, lies outside of the data directory.
const MARKER: &str = "MARKER-that-must-stay-secret";

/// Files below these directories in which the marker can be read. Another process looks: a look from within one that has
/// the database open would drop its locks.
fn found(directories: &[&Path]) -> String {
    let found = Command::new("grep").args(["-rlaF", MARKER]).args(directories).output().unwrap();
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// A runtime with a program that logs the marker, started where it would leave a core, as far as its starter decides.
fn runtime(directory: tempfile::TempDir) -> TestRuntime {
    TestRuntime::on_with(directory, |command| {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]).arg(command.get_program());
        limited.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        let place = command.get_args().last().map(Path::new).and_then(Path::parent).unwrap();
        limited.current_dir(place.join("cwd")).stderr(Stdio::null());
        *command = limited;
    })
}

fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let script =
        format!("i=0; while [ $i -lt {TIMES} ]; do echo {MARKER} $i; i=$((i+1)); done >&2; exec sleep 1000");
    let config =
        format!("{CONFIG}[[program]]\nname = \"teller\"\ncommand = \"sh\"\nargs = [\"-c\", \"{script}\"]\n");
    std::fs::write(place.path().join("interlock.toml"), config).unwrap();
    for name in ["tmp", "cwd"] {
        std::fs::create_dir(place.path().join(name)).unwrap();
    }
    place
}

#[test]
fn a_text_logged_and_said_ten_thousand_times_is_in_no_file_not_after_kill_9_and_not_in_a_core() {
    let place = place();
    let places = ["data", "tmp", "cwd"].map(|name| place.path().join(name));
    let places: Vec<&Path> = places.iter().map(|path| path.as_path()).collect();
    // A process that does nothing about it leaves a core here; otherwise its absence proves nothing.
    let mut control = Command::new("sh");
    control
        .args(["-c", "ulimit -c unlimited; M=MARKER-that-must-stay; kill -ABRT $$"])
        .current_dir(places[2]);
    control.stderr(Stdio::null()).status().unwrap();
    let cores = || std::fs::read_dir(places[2]).unwrap().count();
    let leaves_cores = cores() > 0;
    for core in std::fs::read_dir(places[2]).unwrap().flatten() {
        std::fs::remove_file(core.path()).unwrap();
    }

    let mut runtime = runtime(place);
    runtime.wait_until_ready();
    for _ in 0..5 {
        runtime.turn("secret", &format!("{MARKER} said"));
    }
    let stored = || {
        let arguments = ["logs", "--component", "teller", "--grep", MARKER, "-n", "20000"];
        let output = runtime.interlock(&arguments);
        assert!(output.status.code().is_some_and(|code| code < 2), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    eventually("all of it to be stored", || (stored() == TIMES).then_some(()));
    assert_eq!(found(&places), "", "while it runs");
    let model = runtime.processes().into_iter().find(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(20).any(|window| window == b"INTERLOCK_COMPONENT=")
    });
    for (what, signal, pid) in [
        ("the model service aborted", Signal::SIGABRT, model),
        ("the runtime aborted", Signal::SIGABRT, Some(runtime.process.id())),
    ] {
        let pid = nix::unistd::Pid::from_raw(pid.unwrap() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
        eventually(what, || nix::sys::signal::kill(pid, None).is_err().then_some(()).or_else(|| zombie(pid)));
        assert_eq!(
            (cores(), found(&places).as_str()),
            (0, ""),
            "{what} (cores are left here: {leaves_cores})"
        );
    }
    // Waited for: while a thread of it is still ending it holds the lock of the directory.
    runtime.process.kill();
    // Killed between two writes, with the log and the journal as they were.
    for _ in 0..2 {
        let mut command = TestRuntime::command(runtime.directory.path());
        command.stderr(Stdio::null());
        runtime.process = TestProcess::spawn(command);
        runtime.wait_until_ready();
        runtime.turn("secret", &format!("{MARKER} again"));
        runtime.signal(Signal::SIGKILL);
        runtime.process.kill();
        assert_eq!(found(&places), "", "after kill -9");
    }
    assert!(places[0].join("interlock.db").exists());
}

/// Whether it is dead and only waits for its parent.
fn zombie(pid: nix::unistd::Pid) -> Option<()> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')).then_some(())
}
