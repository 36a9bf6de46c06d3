//! `bus serve` as a process: what is left of its commands when nobody wants their answer, and how it ends.

use std::{fs, time::Duration};

use interlock_bus::{Client, ConnectOptions, Payload, RequestError, blocking};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    broker_process::BrokerProcess,
    harness::{DEADLINE, TestProcess, eventually, runtime::tool},
};

struct Stage {
    broker: BrokerProcess,
    asker: Client,
}

fn stage() -> Stage {
    let broker = BrokerProcess::start();
    let asker = broker.enrol("ada", &[], &[], &[], &["ask/#"]);
    broker.enrol("worker", &[], &[], &["ask/#"], &[]);
    let asker = Client::connect_blocking(ConnectOptions::new(asker)).unwrap();
    Stage { broker, asker }
}

impl Stage {
    /// Answers with this command, which gets the path of a file to write into as `$OUT`.
    fn serve(&self, command: &str) -> (TestProcess, std::path::PathBuf) {
        let out = self.broker.directory().join("out");
        let mut serve = tool("bus");
        serve.args(["serve", "ask/#", "--command", command, "--creds"]).arg(self.broker.path_of("worker"));
        serve.env("OUT", &out);
        (TestProcess::spawn(serve), out)
    }

    /// Asks until somebody serves.
    fn ask(&self, deadline: Duration) -> Result<String, RequestError> {
        let topic = "ask/x".parse().unwrap();
        eventually("somebody to serve", || {
            match blocking::wait(self.asker.request(&topic, Payload::text("question"), deadline)) {
                Err(RequestError::NoResponders { .. }) => None,
                answer => Some(answer.map(|message| message.text().unwrap().to_owned())),
            }
        })
    }
}

#[test]
fn processes_of_a_command_end_when_its_answer_is_not_wanted_any_more() {
    let stage = stage();
    let (serving, out) = stage.serve("sleep 1000 & echo $! > $OUT; wait");
    let answer = stage.ask(Duration::from_secs(2));
    assert!(matches!(answer, Err(RequestError::TimedOut { .. })), "{answer:?}");
    let pid: i32 = fs::read_to_string(out).unwrap().trim().parse().unwrap();
    eventually("what the command has started to end", || kill(Pid::from_raw(pid), None).err());
    assert!(serving.line().contains("cancelled"));
}

#[test]
fn who_is_asked_to_end_answers_what_it_has_taken_first() {
    let stage = stage();
    let (mut serving, out) = stage.serve("touch $OUT; while [ -e $OUT ]; do sleep 0.05; done; cat");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| stage.ask(DEADLINE));
        eventually("the command to run", || out.exists().then_some(()));
        serving.signal(Signal::SIGTERM);
        fs::remove_file(&out).unwrap();
        assert_eq!(answer.join().unwrap().as_deref(), Ok("question"));
    });
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn commands_hear_signals_and_end_when_it_is_told_twice() {
    let stage = stage();
    let (mut serving, out) = stage.serve("(kill -TERM $BASHPID 2>/dev/null || kill -TERM $$); echo survived");
    // The shell ends by the signal, so it is not blocked there.
    let answer = stage.ask(DEADLINE);
    assert!(
        matches!(&answer, Err(RequestError::Failed { text, .. }) if text.contains("signal 15")),
        "{answer:?}"
    );
    serving.signal(Signal::SIGTERM);
    assert_eq!(serving.exit_code(), Some(1), "a request failed");

    let (mut serving, _) = stage.serve("echo $$ > $OUT.pid; exec sleep 1000");
    let pid_file = out.with_extension("pid");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| stage.ask(DEADLINE));
        let pid: i32 =
            eventually("the command to run", || fs::read_to_string(&pid_file).ok()?.trim().parse().ok());
        serving.signal(Signal::SIGINT);
        assert!(serving.is_alive(), "the first signal lets what was taken be answered");
        serving.signal(Signal::SIGTERM);
        assert_eq!(serving.exit_code(), Some(11));
        eventually("the command to end", || kill(Pid::from_raw(pid), None).err());
        assert!(answer.join().unwrap().is_err());
    });
}
