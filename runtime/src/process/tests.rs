//! Programs under their host, with real processes. The guardian is this test binary, run again.

use std::{
    collections::BTreeSet,
    io::Read,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use super::*;
use crate::supervisor::{ChildSpecification, Children, ShutdownPhases, Strategy, Supervisor};

const DEADLINE: Duration = Duration::from_secs(20);
/// Far less than any clock of ours, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(700);
const AS_GUARDIAN: &str = "INTERLOCK_TEST_GUARDIAN";
const AS_RUNTIME: &str = "INTERLOCK_TEST_RUNTIME";
const AS_GROUPS: &str = "INTERLOCK_TEST_GROUPS";

/// Not a test: what [`again`] runs as the guardian.
#[test]
fn entry_of_the_guardian() {
    if std::env::var_os(AS_GUARDIAN).is_some() {
        std::process::exit(if guardian::run() == ExitCode::SUCCESS { 0 } else { 1 });
    }
}

/// Not a test: what the test of `kill -9` runs as the runtime.
#[test]
fn entry_of_a_runtime() {
    if let Some(script) = std::env::var_os(AS_RUNTIME) {
        let stand = Stand::start(shell(&script.into_string().unwrap()));
        loop {
            stand.report();
        }
    }
}

/// Not a test: what the test of groups and `kill -9` runs as the runtime. A group with a program and a group with another.
#[test]
fn entry_of_a_runtime_with_groups() {
    let Some(pulse) = std::env::var_os(AS_GROUPS) else { return };
    let program = |name: &str| {
        // One that does not want to end, and one that has left its group.
        let script = format!(
            "exec 9> {}; trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & echo {name} >&9; sleep 1000; sleep 1000",
            pulse.display()
        );
        let name: PeerName = name.parse().unwrap();
        ChildSpecification::process(name.clone(), ProgramHost::new(name, shell(&script)))
    };
    let group = |name: &str, children| {
        let children = Children::Lasting(children);
        ChildSpecification::supervisor(
            name.parse().unwrap(),
            Strategy::OneForAll,
            children,
            ShutdownPhases::default(),
        )
        .unwrap()
    };
    let inner = group("inner", vec![program("below")]);
    let outer = group("outer", vec![program("among"), inner]);
    let tree = Supervisor::new("root");
    tree.start(Strategy::OneForOne, Children::Lasting(vec![program("first"), outer])).unwrap().join();
}

fn again(entry: &str, variable: &str, value: &str) -> GuardianCommand {
    let entry = format!("process::tests::{entry}");
    GuardianCommand {
        binary: "/proc/self/exe".into(),
        arguments: vec![entry.into(), "--exact".into()],
        environment: vec![(variable.into(), value.into())],
    }
}

fn shell(script: &str) -> Program {
    Program {
        arguments: vec!["-c".into(), script.into()],
        grace: Duration::from_millis(300),
        guardian: again("entry_of_the_guardian", AS_GUARDIAN, "1"),
        ..Program::new("sh")
    }
}

fn line(pattern: &str) -> Readiness {
    Readiness::Line(regex_lite::Regex::new(pattern).unwrap())
}

struct Stand {
    host: ProgramHost,
    reports: Receiver<HostReport>,
}

impl Stand {
    fn start(program: Program) -> Self {
        let mut host = ProgramHost::new("scripted".parse().unwrap(), program);
        let (sink, reports) = bounded(64);
        host.start(1, Reports::new(move |report| sink.send(report).unwrap()));
        Self { host, reports }
    }

    /// The next report that is not about progress.
    fn report(&self) -> HostReport {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.reports.recv_deadline(deadline).expect("a report within the deadline") {
                HostReport::Progress(_) => {}
                report => return report,
            }
        }
    }

    fn ready(&self) -> String {
        match self.report() {
            HostReport::Ready { proof } => proof,
            other => panic!("expected readiness, heard {other:?}"),
        }
    }

    fn guardian(&self) -> Pid {
        self.host.present.as_ref().unwrap().lock().guardian.unwrap()
    }

    /// Known a moment after the program has begun to speak.
    fn program(&self) -> Pid {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(program) = self.host.present.as_ref().unwrap().lock().program {
                return program;
            }
            assert!(Instant::now() < deadline, "the guardian did not name its program");
            std::thread::yield_now();
        }
    }

    fn exit(&self) -> Exit {
        match self.report() {
            HostReport::Exited(exit) => exit,
            other => panic!("expected the end, heard {other:?}"),
        }
    }

    fn failure(&self) -> String {
        match self.exit() {
            Exit::Failed(failure) => failure.to_string(),
            other => panic!("expected a failure, heard {other:?}"),
        }
    }
}

/// A pipe that programs hold open by opening it: it ends when the last of them has died.
struct Pulse {
    directory: TempDir,
}

impl Pulse {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mkfifo(&directory.path().join("pulse"), Mode::S_IRWXU).unwrap();
        Self { directory }
    }

    fn path(&self) -> std::path::Display<'_> {
        // Lives as long as `self`.
        Path::new(self.directory.path()).display()
    }

    /// What was written into it, once everybody who held it has died; and tells when it was opened.
    fn listen(&self) -> Receiver<String> {
        let path = self.directory.path().join("pulse");
        let (sink, heard) = bounded(2);
        std::thread::spawn(move || {
            let mut pipe = std::fs::File::open(path).unwrap();
            let mut first = [0; 3];
            pipe.read_exact(&mut first).unwrap();
            sink.send(String::from_utf8_lossy(&first).into_owned()).unwrap();
            let mut rest = String::new();
            pipe.read_to_string(&mut rest).unwrap();
            sink.send(rest).unwrap();
        });
        heard
    }
}

#[test]
fn the_reason_of_an_end_is_its_code_or_signal_with_the_last_words() {
    let stand = Stand::start(shell("echo the weights are missing >&2; exit 3"));
    stand.ready();
    assert_eq!(stand.failure(), "exited with code 3: the weights are missing");

    let stand = Stand::start(shell("kill -SEGV $$"));
    stand.ready();
    assert_eq!(stand.failure(), "ended by signal SIGSEGV");

    let stand = Stand::start(shell("exit 0"));
    stand.ready();
    assert_eq!(stand.exit(), Exit::Normal);
}

#[test]
fn a_program_that_is_not_there_is_a_failure_that_names_it() {
    let stand = Stand::start(Program { command: "/no/such/program".into(), ..shell("") });
    let failure = stand.failure();
    assert!(failure.starts_with("`/no/such/program` was not started: No such file"), "{failure}");

    let guardian = GuardianCommand { binary: "/no/such/guardian".into(), ..GuardianCommand::default() };
    let stand = Stand::start(Program { guardian, ..shell("") });
    let failure = stand.failure();
    assert!(failure.starts_with("guardian `/no/such/guardian` was not started: "), "{failure}");
}

#[test]
fn a_newline_on_the_descriptor_is_readiness() {
    let program = Program {
        readiness: Readiness::Newline,
        ..shell("echo listening > /proc/self/fd/$INTERLOCK_READY_FD; exec sleep 1000")
    };
    let mut stand = Stand::start(program);
    assert_eq!(stand.ready(), "it wrote a newline to INTERLOCK_READY_FD");
    stand.host.stop(Stop::Final);
    assert_eq!(stand.exit(), Exit::Normal, "ended by the signal that it was asked with");
}

#[test]
fn a_datagram_on_the_notify_socket_is_readiness() {
    let script = "
import os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
notify.send(b'STATUS=loading weights')
notify.send(b'READY=1\\nSTATUS=waiting')
time.sleep(1000)";
    let program = Program {
        command: "python3".into(),
        arguments: vec!["-c".into(), script.into()],
        readiness: Readiness::SdNotify,
        ..shell("")
    };
    let mut stand = Stand::start(program);
    assert_eq!(stand.ready(), "it sent READY=1");
    stand.host.stop(Stop::Final);
    assert_eq!(stand.exit(), Exit::Normal);
}

/// A program that sends these datagrams and then sleeps.
fn notifies(datagrams: &[&str]) -> Program {
    let script = format!(
        "
import os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
for datagram in {datagrams:?}:
    notify.send(datagram.encode())
time.sleep(1000)"
    );
    Program { command: "python3".into(), arguments: vec!["-c".into(), script.into()], ..shell("") }
}

#[test]
fn more_time_is_asked_for_on_the_notify_socket_whatever_readiness_is() {
    let stand =
        Stand::start(notifies(&["READY=1", "EXTEND_TIMEOUT_USEC=never", "EXTEND_TIMEOUT_USEC=1500000"]));
    assert!(stand.ready().starts_with("runs as pid"));
    assert_eq!(stand.report(), HostReport::Extend(Duration::from_millis(1500)), "READY=1 was not asked for");
}

#[test]
fn a_program_that_asks_for_more_time_while_it_stops_is_not_killed_at_the_end_of_its_grace() {
    let script = |by: &str| {
        format!(
            "
import os, signal, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
def stop(*_):
    notify.send(b'EXTEND_TIMEOUT_USEC={by}')
    # Works on for longer than the grace.
    time.sleep(0.6)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
while True:
    signal.pause()"
        )
    };
    let program = |by| Program {
        command: "python3".into(),
        arguments: vec!["-c".into(), script(by).into()],
        readiness: line("^up$"),
        ..shell("")
    };
    let mut stand = Stand::start(program("60000000"));
    stand.ready();
    stand.host.stop(Stop::Final);
    assert_eq!(stand.report(), HostReport::Extend(Duration::from_secs(60)), "the supervisor grants it too");
    assert_eq!(stand.exit(), Exit::Normal);

    // Less than it has anyway takes nothing away, and gives nothing.
    let mut stand = Stand::start(program("1"));
    stand.ready();
    stand.host.stop(Stop::Final);
    assert_eq!(stand.report(), HostReport::Extend(Duration::from_micros(1)));
    assert!(matches!(stand.exit(), Exit::Forced(_)));
}

#[test]
fn a_program_that_owes_a_heartbeat_is_alive_only_while_it_sends_it() {
    let silent = Program {
        heartbeat: Some(Duration::from_millis(300)),
        ..notifies(&["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1"])
    };
    let mut stand = Stand::start(silent);
    stand.ready();
    // Behind the heartbeat, so that it is known to have come.
    assert!(matches!(stand.report(), HostReport::Extend(_)));
    stand.host.ask(1);
    assert_eq!(stand.report(), HostReport::Alive { nonce: 1 });
    let deadline = Instant::now() + DEADLINE;
    for nonce in 2.. {
        assert!(Instant::now() < deadline, "it never fell silent");
        stand.host.ask(nonce);
        if let HostReport::Progress(status) = stand.reports.recv_timeout(DEADLINE).unwrap() {
            assert!(status.starts_with("no heartbeat for 0."), "{status}");
            assert!(status.ends_with("its limit is 300ms"), "{status}");
            break;
        }
    }

    let limit = shell("test $WATCHDOG_USEC = 250000 -a -z \"$WATCHDOG_PID\"");
    let stand = Stand::start(Program { heartbeat: Some(Duration::from_millis(250)), ..limit });
    stand.ready();
    assert_eq!(stand.exit(), Exit::Normal, "it knows how often");
}

/// An HTTP server on a port of its own that answers each question with the next of these statuses.
fn answers(statuses: Vec<u16>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for status in statuses {
            let (mut connection, _) = listener.accept().unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(connection.try_clone().unwrap());
            while reader.read_line(&mut head).unwrap() > 2 {}
            assert!(head.starts_with("GET /health HTTP/1.1\r\n"), "{head}");
            write!(connection, "HTTP/1.1 {status} X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    url
}

#[test]
fn a_url_that_answers_with_a_success_is_readiness_and_liveness() {
    let (ready, alive) = (answers(vec![503, 302, 404, 204]), answers(vec![200, 500, 200]));
    let program = Program {
        readiness: Readiness::Http(ready.parse().unwrap()),
        liveness: Some(alive.parse().unwrap()),
        ..shell("exec sleep 1000")
    };
    let mut stand = Stand::start(program);
    let mut said = Vec::new();
    let proof = loop {
        match stand.report() {
            HostReport::Status(status) => said.push(status),
            HostReport::Ready { proof } => break proof,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(proof, format!("{ready} answered 204"));
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[0].contains(&ready) && said[0].contains("503"), "{said:?}");
    assert_eq!(said[3], proof, "what it says is not that it does not answer");
    stand.host.ask(1);
    assert_eq!(stand.report(), HostReport::Alive { nonce: 1 }, "and it is said only after a failure");
    stand.host.ask(2);
    assert!(matches!(stand.report(), HostReport::Status(status) if status.contains("500")));
    stand.host.ask(3);
    assert_eq!(stand.report(), HostReport::Status(format!("{alive} answered 200")));
    assert_eq!(stand.report(), HostReport::Alive { nonce: 3 });
}

#[test]
fn a_program_that_dies_while_its_url_is_asked_is_reported_at_once() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", nobody.local_addr().unwrap());
    let stand = Stand::start(Program { readiness: Readiness::Http(url.parse().unwrap()), ..shell("exit 7") });
    assert_eq!(stand.failure(), "exited with code 7");
}

#[test]
fn a_matching_line_of_output_is_readiness() {
    let stand = Stand::start(Program {
        readiness: line("^listening on"),
        ..shell("echo hello; echo listening on 1")
    });
    assert_eq!(stand.ready(), "it wrote `listening on 1`");
}

fn names_incarnation(incarnation: u64) -> Result<IssuedCredentials, Failure> {
    Ok(IssuedCredentials::new(format!("name = \"for {incarnation}\"\n"), || ()))
}

#[test]
fn credentials_are_void_before_the_end_of_their_incarnation_is_told_however_it_ended() {
    let valid = Arc::new(Mutex::new(Vec::new()));
    let now_valid = || valid.lock().unwrap().clone();
    let place = valid.clone();
    let issue = move |incarnation| {
        place.lock().unwrap().push(incarnation);
        let place = place.clone();
        let revoke = move || place.lock().unwrap().retain(|valid| *valid != incarnation);
        Ok(IssuedCredentials::new("name = \"it\"\n".to_owned(), revoke))
    };
    let issue: Arc<IssueCredentials> = Arc::new(issue);
    let program =
        move || Program { credentials: Credentials::Descriptor(issue.clone()), ..shell("exec sleep 1000") };
    // As it is, and made afresh for each incarnation, as the model service is.
    for remake in [false, true] {
        let name = "scripted".parse().unwrap();
        let host = match remake {
            true => ProgramHost::remade(name, program.clone()),
            false => ProgramHost::new(name, program()),
        };
        let mut stand = Stand { host, reports: bounded(0).1 };
        for (incarnation, ends) in [
            (1, (|stand| stand.host.stop(Stop::Final)) as fn(&mut Stand)),
            (2, |stand| stand.host.kill(true)),
            (3, |stand| kill(stand.guardian(), Signal::SIGKILL).unwrap()),
            (4, |stand| stand.host.abandon(true)),
        ] {
            let (sink, reports) = bounded(64);
            stand.reports = reports;
            stand.host.start(incarnation, Reports::new(move |report| drop(sink.send(report))));
            stand.ready();
            stand.program();
            assert!(now_valid().contains(&incarnation), "{incarnation}");
            ends(&mut stand);
            if incarnation == 4 {
                assert!(!now_valid().contains(&4), "nobody waits for one that is given up");
            }
            stand.exit();
            assert!(!now_valid().contains(&incarnation), "{incarnation}");
        }
    }
}

#[test]
fn credentials_come_through_a_descriptor_and_our_own_variables_do_not() {
    let program = Program {
        credentials: Credentials::Descriptor(Arc::new(names_incarnation)),
        environment: vec![("GREETING".into(), "hi".into())],
        readiness: line("^end"),
        ..shell(
            "cat /proc/self/fd/$INTERLOCK_CREDENTIALS_FD >&2; echo $GREETING $(env | grep -c ^INTERLOCK_) >&2; exit 1",
        )
    };
    let stand = Stand::start(program);
    // The descriptor's number is the only variable of ours; the test's own are not inherited.
    assert_eq!(stand.failure(), "exited with code 1: hi 1");

    let program = Program {
        credentials: Credentials::Descriptor(Arc::new(names_incarnation)),
        readiness: line("^name = \"for 1\"$"),
        ..shell("cat /proc/self/fd/$INTERLOCK_CREDENTIALS_FD")
    };
    Stand::start(program).ready();

    let refuse: Arc<IssueCredentials> = Arc::new(|_| Err(Failure::new("the broker is down")));
    let stand = Stand::start(Program { credentials: Credentials::Descriptor(refuse), ..shell("") });
    assert_eq!(stand.failure(), "no credentials were issued: the broker is down");
}

#[test]
fn a_program_starts_with_no_signal_blocked() {
    // Python, because a shell clears its mask itself.
    let script = "import signal; print('blocked:', signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)";
    let program = Program {
        command: "python3".into(),
        arguments: vec!["-c".into(), script.into()],
        readiness: line(r"^blocked: set\(\)$"),
        ..shell("")
    };
    Stand::start(program).ready();
}

#[test]
fn a_signal_to_the_guardian_stops_its_program() {
    let program =
        Program { readiness: line("up"), ..shell("trap 'exit 7' TERM; echo up; sleep 1000 & wait") };
    let stand = Stand::start(program);
    stand.ready();
    let guardian = stand.guardian();
    kill(guardian, Signal::SIGINT).unwrap();
    assert!(stand.failure().starts_with("exited with code 7"));
}

#[test]
fn a_stop_ends_forked_grandchildren_too_even_those_that_ignore_it_or_left_the_group() {
    let pulse = Pulse::new();
    let heard = pulse.listen();
    let script = format!(
        "exec 9> {}/pulse
         (trap '' TERM; sleep 1000 & wait; sleep 1000) &
         setsid sh -c 'trap \"\" TERM; sleep 1000' &
         echo up >&9
         wait",
        pulse.path()
    );
    let mut stand = Stand::start(shell(&script));
    stand.ready();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "up\n");
    stand.host.stop(Stop::Final);
    assert_eq!(stand.exit(), Exit::Normal);
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "", "all of them are gone");
}

#[test]
fn what_a_program_leaves_behind_at_its_end_is_stopped() {
    let pulse = Pulse::new();
    let heard = pulse.listen();
    let stand =
        Stand::start(shell(&format!("exec 9> {}/pulse; sleep 1000 & echo up >&9; exit 4", pulse.path())));
    stand.ready();
    assert_eq!(stand.failure(), "exited with code 4");
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "up\n");
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "");
}

#[test]
fn a_kill_does_not_ask() {
    let mut stand =
        Stand::start(Program { readiness: line("up"), ..shell("trap '' TERM; echo up; sleep 1000") });
    stand.ready();
    stand.host.kill(false);
    assert_eq!(stand.exit(), Exit::Killed);
}

#[test]
fn an_order_that_comes_before_the_guardian_is_obeyed() {
    let mut stand = Stand::start(shell("exec sleep 1000"));
    stand.host.kill(false);
    let reports: Vec<_> = std::iter::repeat_with(|| stand.report()).take(2).collect();
    assert!(reports.contains(&HostReport::Exited(Exit::Killed)), "{reports:?}");
}

#[test]
fn a_suspended_program_does_not_count_as_alive() {
    let mut stand = Stand::start(Program {
        readiness: line("up"),
        ..shell("echo up; kill -STOP $$; echo again; sleep 1000")
    });
    stand.ready();
    let program = stand.program();
    let stopped = || std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap().contains(") T ");
    while !stopped() {
        std::thread::yield_now();
    }
    stand.host.ask(1);
    kill(program, Signal::SIGCONT).unwrap();
    while stopped() {
        std::thread::yield_now();
    }
    stand.host.ask(2);
    let answer = stand.report();
    // The first question may have been read only after the program went on; then both are answered.
    assert!(matches!(answer, HostReport::Alive { nonce: 1 | 2 }), "{answer:?}");
}

#[test]
fn a_suspended_program_that_is_stopped_goes_on_so_that_it_can_end_by_itself() {
    let mut stand = Stand::start(Program {
        readiness: line("up"),
        grace: Duration::from_secs(10),
        ..shell("trap 'exit 0' TERM; echo up; kill -STOP $$; while :; do sleep 1000 & wait; done")
    });
    stand.ready();
    let program = stand.program();
    while !std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
    stand.host.stop(Stop::Final);
    assert_eq!(stand.exit(), Exit::Normal, "it need not be killed after its grace");
}

#[test]
fn the_end_of_a_program_is_told_at_once_and_not_at_the_end_of_its_grace() {
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("gate");
    mkfifo(&gate, Mode::S_IRWXU).unwrap();
    // Its last work ends when the gate opens.
    let script = format!("trap 'read last < {}; exit 0' TERM; echo up; sleep 1000 & wait", gate.display());
    let mut stand = Stand::start(Program { readiness: line("up"), grace: DEADLINE * 2, ..shell(&script) });
    stand.ready();
    stand.host.stop(Stop::Final);
    // Opens when the program is there to read.
    let mut opened = std::fs::OpenOptions::new().write(true).open(&gate).unwrap();
    writeln!(opened).unwrap();
    let last = Instant::now();
    assert_eq!(stand.exit(), Exit::Normal);
    assert!(last.elapsed() < AT_ONCE, "{:?}", last.elapsed());
}

#[test]
fn no_program_outlives_a_runtime_killed_with_9_by_more_than_its_grace() {
    let pulse = Pulse::new();
    let heard = pulse.listen();
    let script = format!(
        "exec 9> {}/pulse; (trap '' TERM; sleep 1000 & wait; sleep 1000) & echo up >&9; trap '' TERM; sleep 1000; sleep 1000",
        pulse.path()
    );
    let GuardianCommand { binary, arguments, environment } = again("entry_of_a_runtime", AS_RUNTIME, &script);
    let mut runtime =
        Command::new(binary).args(arguments).envs(environment).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "up\n");

    let killed = Instant::now();
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "", "all of them are gone");
    let took = killed.elapsed();
    assert!(took >= Duration::from_millis(290), "they were given their grace: {took:?}");
    assert!(took < Duration::from_secs(3), "and not much more: {took:?}");
}

#[test]
fn no_program_of_a_group_within_a_group_outlives_a_runtime_killed_with_9_by_more_than_its_grace() {
    let pulse = Pulse::new();
    let path = pulse.directory.path().join("pulse");
    let GuardianCommand { binary, arguments, environment } =
        again("entry_of_a_runtime_with_groups", AS_GROUPS, path.to_str().unwrap());
    let mut runtime =
        Command::new(binary).args(arguments).envs(environment).stdout(Stdio::null()).spawn().unwrap();
    let mut pipe = BufReader::new(std::fs::File::open(path).unwrap()).lines();
    let heard: BTreeSet<String> = pipe.by_ref().take(3).map(Result::unwrap).collect();
    assert_eq!(heard, ["first", "among", "below"].map(str::to_owned).into());

    let killed = Instant::now();
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    assert!(pipe.next().is_none(), "all of them are gone");
    let took = killed.elapsed();
    assert!(took >= Duration::from_millis(290), "they were given their grace: {took:?}");
    assert!(took < Duration::from_secs(3), "and not much more: {took:?}");
}

#[test]
fn a_guardian_whose_runtime_is_gone_before_the_program_runs_still_stops_it() {
    let pulse = Pulse::new();
    let heard = pulse.listen();
    let script = format!("exec 9> {}/pulse; echo up >&9; sleep 1000", pulse.path());
    // The stop comes at once: one that the program does not notice leaves it the grace to be heard.
    let program = Program { stop_signal: Signal::SIGCONT, grace: Duration::from_secs(2), ..shell(&script) };
    let run = Run {
        name: "scripted".parse().unwrap(),
        program: Arc::new(program),
        incarnation: 1,
        line: Arc::default(),
        reports: Reports::new(|_| ()),
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let charge = serde_json::to_string(&run.charge().unwrap()).unwrap() + "\n";
    ours.write_all(charge.as_bytes()).unwrap();
    drop(ours);
    let mut guardian = run.spawn(theirs).unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "up\n");
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "", "it is not left behind");
    guardian.wait().unwrap();
}

#[test]
fn a_guardian_that_dies_takes_its_program_along_with_whoever_left_the_group_and_says_so() {
    let pulse = Pulse::new();
    let heard = pulse.listen();
    // Two of them; the one in a session of its own is in no group that anybody knows.
    let script =
        "exec 9> {}/pulse; setsid sh -c 'sleep 1000; sleep 1000' & echo up >&9; sleep 1000; sleep 1000";
    let stand = Stand::start(shell(&script.replace("{}", &pulse.path().to_string())));
    stand.ready();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "up\n");
    let guardian = stand.guardian();
    stand.program();
    let directory = stand.host.present.as_ref().unwrap().lock().directory.clone().unwrap();
    assert!(directory.join("notify").exists());
    kill(guardian, Signal::SIGKILL).unwrap();
    assert_eq!(stand.failure(), "its guardian died");
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), "");
    assert!(!directory.exists(), "what it left behind is removed");
}
