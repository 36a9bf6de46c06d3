//! What still runs and yet does not do its work: the state says so, and the supervisor restarts nothing for it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    eventually,
    runtime::{TestRuntime, binaries},
};

/// What a verb says, and its exit code.
fn ask(runtime: &TestRuntime, arguments: &[&str]) -> (String, Option<i32>) {
    let output = runtime.interlock(arguments);
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

/// A program whose main process lives while a second one has its session on the bus; that one begins again when `again`
/// is there.
fn program_with_a_session_of_a_second_process(files: &Path) -> String {
    let (files, bus) = (files.display(), binaries().join("bus"));
    let script = format!(
        "umask 077; cat /dev/fd/$INTERLOCK_CREDENTIALS_FD > {files}/creds\n\
         while :; do\n\
         {} sub work/# --creds {files}/creds & echo $! > {files}/new; mv {files}/new {files}/pid; wait $!\n\
         while [ ! -e {files}/again ]; do sleep 0.02; done; rm {files}/again\n\
         done",
        bus.display()
    );
    format!(
        "[[program]]\nname = \"listener\"\ncommand = \"sh\"\nargs = [\"-c\", '''{script}''']\n\
         readiness = \"bus\"\nsubscribe = [\"work/#\"]\n"
    )
}

#[test]
fn a_program_that_runs_and_has_lost_its_session_is_degraded_until_it_is_back_and_is_not_restarted() {
    let files = tempfile::tempdir().unwrap();
    let runtime = TestRuntime::start_with(&program_with_a_session_of_a_second_process(files.path()));
    assert_eq!(ask(&runtime, &["status"]).1, Some(0));

    let pid = fs::read_to_string(files.path().join("pid")).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();

    let said = eventually("the status to tell of the loss", || {
        let (said, code) = ask(&runtime, &["status"]);
        (code == Some(3)).then_some(said)
    });
    let line = said.lines().find(|line| line.starts_with("listener")).unwrap();
    assert!(line.contains("degraded") && line.contains("its session on the bus is gone"), "{said}");
    let (said, _) = ask(&runtime, &["ps"]);
    let line = said.lines().find(|line| line.starts_with("listener")).unwrap();
    assert!(line.contains("degraded"), "{said}");
    let (said, _) = ask(&runtime, &["explain", "listener"]);
    assert!(said.starts_with("`listener` is degraded for "), "{said}");
    assert!(said.contains("impaired      it runs, but its session on the bus is gone"), "{said}");

    fs::write(files.path().join("again"), "").unwrap();
    eventually("it to be back", || (ask(&runtime, &["status"]).1 == Some(0)).then_some(()));
    let status = runtime.status();
    let listener = status["tree"]["children"].as_array().unwrap();
    let listener = listener.iter().find(|child| child["name"] == "listener").unwrap();
    assert_eq!(listener["restarts"], 0, "{listener}");
    assert_eq!(listener["impaired"], serde_json::Value::Null, "{listener}");
}

/// Opens and closes stock sockets, each with a session: ten one after the other, then as many again after a pause.
const OPENS_AND_CLOSES: &str = r#"
import os, pathlib, time, tomllib, zmq
from zmq.utils.monitor import recv_monitor_message
with os.fdopen(int(os.environ["INTERLOCK_CREDENTIALS_FD"]), "rb") as file:
    creds = tomllib.load(file)
os.write(int(os.environ["INTERLOCK_READY_FD"]), b"\n")
context = zmq.Context()
def session():
    socket = context.socket(zmq.PUB)
    keys = (creds[key].encode() for key in ["public_key", "secret_key", "broker_key"])
    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = keys
    monitor = socket.get_monitor_socket()
    socket.connect(creds["endpoints"][0])
    while recv_monitor_message(monitor)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED:
        pass
    socket.disable_monitor()
    socket.close(linger=0)
def sessions(name):
    for _ in range(10):
        session()
    pathlib.Path("FILES", name).touch()
sessions("first")
time.sleep(3)
sessions("second")
time.sleep(1000)
"#;

#[test]
fn a_program_that_opens_and_closes_stock_sockets_stays_running_also_while_it_has_none() {
    let files = tempfile::tempdir().unwrap();
    let script = OPENS_AND_CLOSES.replace("FILES", files.path().to_str().unwrap());
    let runtime = TestRuntime::start_with(&format!(
        "[[program]]\nname = \"visitor\"\ncommand = \"python3\"\nargs = [\"-c\", '''{script}''']\n\
         readiness = \"newline\"\npublish = [\"work/#\"]\n"
    ));
    let visitor = || {
        let status = runtime.status();
        let children = status["tree"]["children"].as_array().unwrap();
        children.iter().find(|child| child["name"] == "visitor").unwrap().clone()
    };
    let is_there = |name: &str| files.path().join(name).exists().then_some(());
    eventually("the first sessions", || is_there("first"));
    let before = visitor();
    eventually("the sessions after the pause", || is_there("second"));
    let after = visitor();
    assert_eq!((&before["state"], &after["state"]), (&"running".into(), &"running".into()), "{after}");
    // The same moment on a clock that is read anew for each answer; the pause is three seconds long.
    let second = |child: &serde_json::Value| {
        child["since"].as_str().unwrap()[17..].trim_end_matches('Z').parse::<f64>()
    };
    let moved = (second(&before).unwrap() - second(&after).unwrap()).abs();
    let moved = moved.min(60.0 - moved) > 1.0;
    assert!(!moved, "it was something else meanwhile: {before}, {after}");
}

/// A thread of the runtime that was stopped; it goes on when this is dropped.
struct Frozen {
    debugger: Child,
    input: Option<ChildStdin>,
}

impl Frozen {
    /// `None` where no process may stop a thread of another.
    fn thread(runtime: &TestRuntime, name: &str) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/freeze_thread.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(runtime.process.id().to_string()).arg(name);
        let mut debugger = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = debugger.stdin.take();
        let mut said = String::new();
        BufReader::new(debugger.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let frozen = Self { debugger, input };
        match said.trim() {
            "frozen" => Some(frozen),
            "refused" => {
                #[allow(clippy::print_stdout, reason = "what was not tested must not look tested")]
                {
                    println!("no thread could be stopped: run the chapter `watching` as root");
                }
                None
            }
            other => panic!("{other}"),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.debugger.wait();
    }
}

#[test]
fn a_supervisor_that_stands_still_is_told_by_the_status_at_once_counted_and_in_the_end_ends_the_process() {
    let mut runtime = TestRuntime::begin_with("", |command| {
        command.stderr(Stdio::piped());
    });
    runtime.wait_until_ready();
    let stderr = runtime.process.stderr().unwrap();
    let stderr = std::thread::spawn(move || {
        let mut said = String::new();
        let _ = BufReader::new(stderr).read_to_string(&mut said);
        said
    });

    // For a while: it is said, and taken back.
    let Some(frozen) = Frozen::thread(&runtime, "root") else { return };
    let said = eventually("the status to tell that the supervisor stands still", || {
        let asked = Instant::now();
        let (said, code) = ask(&runtime, &["status"]);
        assert!(asked.elapsed() < Duration::from_secs(4), "a question about the status waits for nobody");
        (code == Some(3)).then_some(said)
    });
    assert!(said.contains(" error, process ") && said.contains("supervisor has not answered for "), "{said}");
    let asked = Instant::now();
    assert_eq!(ask(&runtime, &["ps"]).1, Some(0));
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "nor does a question about the load: {:?}",
        asked.elapsed()
    );
    drop(frozen);
    eventually("it to go on", || (ask(&runtime, &["status"]).1 == Some(0)).then_some(()));
    assert_eq!(runtime.status()["supervisor"]["stalls"], 1);

    // For ever: nobody but the process's end can help.
    let _frozen = Frozen::thread(&runtime, "root").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while runtime.process.is_alive() {
        assert!(Instant::now() < deadline, "the process goes on without a supervisor");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(runtime.process.exit_code(), Some(1));
    let said = stderr.join().unwrap();
    assert!(said.contains("the supervisor's loop has stood still for 15 s"), "{said}");
    assert!(said.contains("the supervisor's loop stands still: nothing is restarted"), "{said}");
    eventually("its processes to go", || runtime.processes().is_empty().then_some(()));
}
