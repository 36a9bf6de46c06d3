//! Durable delivery while something goes wrong around it: settings that restart it, no room, a disk that takes nothing.

use std::{
    path::Path,
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use futures_util::future::{Either, select};
use interlock_bus::{
    Payload,
    blocking::wait,
    durable::{ConsumeOptions, DurableError, DurableOptions, words},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    harness::{DEADLINE, TestProcess, eventually, runtime::TestRuntime},
    outbox::{configure, operator, put, started_with, statistics},
};

const TO_OPERATOR: &str = "topics = [{ filter = \"orders/#\", consumers = [\"operator\"] }]\n";

/// A script of `tests/python` with the module, the operator's credentials, and this.
fn python(runtime: &TestRuntime, script: &str, last: Option<&Path>) -> TestProcess {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/interlock.py");
    let credentials = runtime.data().join("keys/operator.toml");
    let paths = [Some(module.as_path()), Some(&credentials), last];
    let arguments: Vec<&str> = paths.iter().flatten().map(|path| path.to_str().unwrap()).collect();
    TestProcess::python(script, &arguments)
}

/// What the status says of the outbox.
fn outbox(runtime: &TestRuntime) -> Option<Value> {
    let status = runtime.status();
    let children = status["tree"]["children"].as_array()?;
    children.iter().find(|child| child["name"] == "outbox").cloned()
}

/// Lets every write to the outbox's database fail, until it is dropped.
struct Failing(Child);

impl Failing {
    /// `None` where a process may not be looked into.
    fn begin(runtime: &TestRuntime) -> Option<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-p"]).arg(runtime.process.id().to_string());
        for file in ["outbox.db", "outbox.db-wal"] {
            command.arg("-P").arg(runtime.data().join(file));
        }
        command.args(["-e", "inject=fdatasync,fsync,pwrite64,write:error=EIO"]).stderr(Stdio::null());
        let mut strace = command.spawn().expect("strace, which this test needs");
        eventually("a put to fail, or strace to give up", || {
            if strace.try_wait().unwrap().is_some() {
                return Some(None);
            }
            let (exit, said) = put(runtime, &["orders/new", "refused"]);
            (exit != 0).then(|| {
                assert!(exit == 6 && said.matches("could not store").count() == 1, "{exit} {said}");
                Some(())
            })
        })?;
        Some(Self(strace))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // It lets go of the process by itself; killed, it could not.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn who_publishes_while_reloads_restart_the_outbox_is_accepted_every_time_from_rust_and_from_python() {
    let runtime = started_with(TO_OPERATOR);
    let enough = Arc::new(AtomicBool::new(false));
    let accepted = Arc::new(AtomicU64::new(0));
    let publishing = thread::spawn({
        let (client, enough, accepted) = (operator(&runtime), Arc::clone(&enough), Arc::clone(&accepted));
        move || {
            let (topic, options) = ("orders/rust".parse().unwrap(), DurableOptions::default());
            while !enough.load(Ordering::Relaxed) {
                let payload = Payload::text("x");
                let put = wait(client.publish_durable(&topic, payload, &options, DEADLINE));
                put.unwrap_or_else(|error| panic!("{}: {error}", error.code()));
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let over = runtime.directory.path().join("over");
    let mut script = python(&runtime, "durable_steady.py", Some(&over));
    assert_eq!(script.line(), "begun");
    for reload in 0..4 {
        let before = accepted.load(Ordering::Relaxed);
        configure(&runtime, &format!("{TO_OPERATOR}retry_cap = \"{}m\"", 30 + reload));
        eventually("more to be accepted", || {
            (accepted.load(Ordering::Relaxed) > before + 1 || publishing.is_finished()).then_some(())
        });
    }
    assert!(outbox(&runtime).unwrap()["incarnation"].as_u64() > Some(1), "{:?}", outbox(&runtime));
    enough.store(true, Ordering::Relaxed);
    std::fs::write(&over, "").unwrap();
    publishing.join().unwrap();
    let from_python: u64 = script.line().parse().unwrap();
    assert_eq!(script.exit_code(), Some(0));
    // Each once, however often it was put.
    assert_eq!(statistics(&runtime)["open"], accepted.load(Ordering::Relaxed) + from_python);
}

#[test]
fn a_python_publisher_that_finds_no_room_waits_for_a_python_consumer_or_knows_that_it_was_refused() {
    let runtime = started_with(&format!("{TO_OPERATOR}pending_max = 1\npolicy = \"pause\""));
    let mut script = python(&runtime, "durable_pause.py", None);
    let held = std::iter::from_fn(|| Some(script.line()).filter(|line| line != "done")).count();
    assert_eq!(held, 2, "claims that held");
    assert_eq!(script.exit_code(), Some(0));
    // The tool hears the same, with its figures.
    assert_eq!(put(&runtime, &["orders/new", "three"]).0, 0);
    let (exit, said) = put(&runtime, &["orders/new", "late", "--timeout", "2s"]);
    assert!(exit == 7 && said.contains("1 of 1 messages are unfinished"), "{exit} {said}");
    let (exit, said) = put(&runtime, &["orders/new", "never", "--timeout", "0s"]);
    assert!(exit == 2 && said.contains("nothing was sent"), "{exit} {said}");
}

#[test]
fn a_reload_is_in_force_at_once_for_a_put_that_waits_for_room() {
    let full = "pending_max = 1\npolicy = \"pause\"";
    let runtime = started_with(&format!("{TO_OPERATOR}{full}"));
    let client = operator(&runtime);
    let (topic, options) = ("orders/new".parse().unwrap(), DurableOptions::default());
    let publish = || Box::pin(client.publish_durable(&topic, Payload::text("x"), &options, 2 * DEADLINE));
    wait(publish()).unwrap();
    // What comes later in the same session is answered when the put before it has arrived.
    let arrived = |put: &mut _| {
        let look = words::LOOK.parse().unwrap();
        let look = pin!(client.request(&look, Payload::text(""), DEADLINE));
        match wait(select(put, look)) {
            Either::Left((put, _)) => panic!("it did not wait: {put:?}"),
            Either::Right((looked, _)) => drop(looked.unwrap()),
        }
    };
    let in_time = |begun: Instant| assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    let mut put = publish();
    arrived(&mut put);
    let begun = Instant::now();
    configure(&runtime, &format!("{TO_OPERATOR}pending_max = 2\npolicy = \"pause\""));
    assert_eq!(wait(put).unwrap().number, 2);
    let mut put = publish();
    arrived(&mut put);
    configure(&runtime, full);
    let refused = wait(put);
    assert!(matches!(refused, Err(DurableError::NoConsumers { .. })), "{refused:?}");
    in_time(begun);
}

#[test]
fn an_outbox_that_cannot_write_is_impaired_until_it_can_and_a_stop_that_cannot_save_says_so_by_its_code() {
    // Another delivery is under way at the stop, and cut off.
    let mut runtime = started_with(&format!("{TO_OPERATOR}[shutdown]\ndrain = \"3s\"\nforced = \"60s\""));
    assert_eq!(put(&runtime, &["orders/new", "before"]).0, 0);
    let Some(failing) = Failing::begin(&runtime) else {
        #[allow(clippy::print_stdout, reason = "what was not tested must not look tested")]
        {
            println!("strace could not attach: run the chapter `outbox_faults` as root");
        }
        return;
    };
    eventually("the status to say so", || {
        outbox(&runtime)?["impaired"].as_str()?.starts_with("cannot write: the last ").then_some(())
    });
    drop(failing);
    assert_eq!(put(&runtime, &["orders/new", "after"]).0, 0);
    eventually("it to be well again", || outbox(&runtime)?["impaired"].is_null().then_some(()));

    // Acknowledged, and nobody can write it down.
    let client = operator(&runtime);
    let mut consumer =
        wait(client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default())).unwrap();
    let held = wait(consumer.next()).unwrap();
    let failing = Failing::begin(&runtime);
    wait(held.ack()).unwrap();
    eventually("the status to say so", || {
        let why = outbox(&runtime)?["impaired"].as_str()?.to_owned();
        why.starts_with("cannot write: the last ").then_some(())
    });
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(6));
    drop((failing, consumer, client));
    runtime.restart();
    let client = operator(&runtime);
    let mut consumer =
        wait(client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default())).unwrap();
    let again = wait(consumer.next()).unwrap();
    assert_eq!((again.message.text().unwrap(), again.attempt), ("before", 2));
}
