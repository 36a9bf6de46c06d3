//! Programs in `examples/`, as a reader would run them.

use std::{path::Path, process::Command, time::Instant};

use interlock_bus::{
    Client, Credentials, Payload,
    blocking::wait,
    client::{ConnectOptions, Event, ReplyStream, SubscribeOptions, Subscription},
};

use crate::harness::{
    DEADLINE, TestBroker, TestProcess, eventually,
    runtime::{TestRuntime, tool},
};

/// The Python greeter, when it has said that it is ready.
fn greeter(broker: &TestBroker, pause: &str) -> TestProcess {
    let credentials = broker.enrol("greeter", &["greetings/#"], &[], &["greeter/#"], &[]);
    let mut command = python_greeter();
    // Its readiness is a newline on a descriptor; here that is its standard output.
    command.env("INTERLOCK_READY_FD", "1").args(["--pause", pause, "--creds"]).arg(credentials);
    let process = TestProcess::spawn(command);
    assert_eq!(process.line(), "");
    process
}

fn python_greeter() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/greeter.py");
    let mut command = Command::new("python3");
    command.arg(script);
    command
}

/// Somebody who asks the greeter and listens to what it publishes.
fn guest(broker: &TestBroker) -> (Client, Subscription) {
    let credentials = broker.enrol("guest", &[], &["greetings/#"], &[], &["greeter/#"]);
    let options = ConnectOptions::new(Credentials::load(&credentials).unwrap()).timeout(DEADLINE);
    let client = Client::connect_blocking(options).unwrap();
    let filter = "greetings/#".parse().unwrap();
    let given = wait(client.subscribe(&filter, SubscribeOptions::default())).unwrap();
    (client, given)
}

fn ask(client: &Client, name: &str) -> ReplyStream {
    let topic = "greeter/hello/v1".parse().unwrap();
    wait(client.request_stream(&topic, Payload::text(name), DEADLINE)).unwrap()
}

fn part(stream: &mut ReplyStream) -> Option<String> {
    let part = wait(stream.next())?.unwrap();
    Some(part.text().unwrap().to_owned())
}

fn parts(mut stream: ReplyStream) -> Vec<String> {
    std::iter::from_fn(|| part(&mut stream)).collect()
}

fn next_given(given: &mut Subscription) -> String {
    match given.next_blocking(Instant::now() + DEADLINE).unwrap() {
        Event::Message(message) => message.text().unwrap().to_owned(),
        gap => panic!("{gap:?}"),
    }
}

#[test]
fn the_python_greeter_streams_more_than_one_window_of_parts_and_publishes() {
    let broker = TestBroker::start();
    let _greeter = greeter(&broker, "0");
    let (client, mut given) = guest(&broker);
    assert_eq!(parts(ask(&client, "Ada")), ["Hello", " Ada,", " pleased", " to", " meet", " you."]);
    assert_eq!(next_given(&mut given), "Ada");
    let name = vec!["Ada"; 500].join(" ");
    assert_eq!(parts(ask(&client, &name)).concat(), format!("Hello {name}, pleased to meet you."));
}

#[test]
fn the_python_greeter_stops_when_it_is_cancelled() {
    let broker = TestBroker::start();
    let _greeter = greeter(&broker, "0.02");
    let (client, mut given) = guest(&broker);
    let mut cancelled = ask(&client, &vec!["never"; 20].join(" "));
    assert_eq!(part(&mut cancelled).as_deref(), Some("Hello"));
    drop(cancelled);
    // Takes longer than the cancelled greeting would have: that would have been published first.
    let name = vec!["Bob"; 40].join(" ");
    assert_eq!(parts(ask(&client, &name)).concat(), format!("Hello {name}, pleased to meet you."));
    assert_eq!(next_given(&mut given), name);
}

#[test]
fn the_runtime_runs_the_python_greeter_as_its_child_also_after_kill_9() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/greeter.py");
    let mut runtime = TestRuntime::start_with(&format!(
        "[[program]]\nname = \"greeter\"\ncommand = \"python3\"\nargs = [\"{}\"]\nreadiness = \"newline\"\n\
         publish = [\"greetings/#\"]\nserve = [\"greeter/#\"]\n",
        script.display()
    ));
    let greet = |runtime: &TestRuntime| {
        let mut request = tool("bus");
        request.arg("--data-dir").arg(runtime.data()).args(["request", "greeter/hello/v1", "Ada"]);
        String::from_utf8(request.output().unwrap().stdout).unwrap().replace('\n', "")
    };
    eventually("a greeting", || (greet(&runtime) == "Hello Ada, pleased to meet you.").then_some(()));
    runtime.process.kill();
    runtime.restart();
    eventually("a greeting by the next one", || greet(&runtime).ends_with("you.").then_some(()));
}

#[test]
fn a_program_that_stops_sending_heartbeats_is_killed_and_started_again() {
    // Its first incarnation falls silent; those after it find the marker and go on.
    let script = "\
import interlock, os, time
is_first = not os.path.exists(os.environ['MARKER'])
open(os.environ['MARKER'], 'w').close()
with interlock.connect() as bus:
    bus.serve('pulse/v1', lambda request: 'second')
    interlock.ready()
    while True:
        interlock.heartbeat()
        time.sleep(1000 if is_first else interlock.heartbeat_seconds())
";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pulse.py");
    std::fs::write(&file, script).unwrap();
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python");
    let runtime = TestRuntime::start_with(&format!(
        "[[program]]\nname = \"pulse\"\ncommand = \"python3\"\nargs = [\"{}\"]\n\
         environment = {{ PYTHONPATH = \"{}\", MARKER = \"{}\" }}\nreadiness = \"notify\"\n\
         heartbeat = \"1s\"\nneeds = [\"model\"]\nserve = [\"pulse/#\"]\n",
        file.display(),
        module.display(),
        directory.path().join("was here").display(),
    ));
    let again = eventually("its second incarnation", || {
        let status = runtime.status();
        let mut children = status["tree"]["children"].as_array()?.iter();
        let pulse = children.find(|child| child["name"] == "pulse")?.clone();
        (pulse["restarts"] == 1 && pulse["state"] == "running").then_some(pulse)
    });
    assert!(again.to_string().contains("last said: no heartbeat for "), "{again}");
    let answer = runtime.bus(&["request", "pulse/v1"]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "second", "{answer:?}");
}

#[test]
fn the_rust_greeter_is_the_whole_program_with_one_more_actor() {
    let help = tool("greeter").arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("status"));
    let directory = tempfile::tempdir().unwrap();
    let mut command = tool("greeter");
    command.arg("--data-dir").arg(directory.path());
    command.args(["--set", "gateway.listen=127.0.0.1:0", "--set", "bus.endpoints=[\"ipc\"]"]);
    let _running = TestProcess::spawn(command);
    eventually("a greeting", || {
        let mut request = tool("bus");
        request.arg("--data-dir").arg(directory.path()).args(["request", "greeter/hello/v1", "Ada"]);
        let said = String::from_utf8(request.output().unwrap().stdout).unwrap().replace('\n', "");
        (said == "Hello Ada, pleased to meet you.").then_some(())
    });
}

#[test]
fn the_python_greeter_says_that_its_key_is_refused() {
    let (broker, stranger) = (TestBroker::start(), TestBroker::start());
    let ours = Credentials::load(&broker.enrol("greeter", &[], &[], &["greeter/#"], &[])).unwrap();
    let theirs = Credentials::load(&stranger.enrol("greeter", &[], &[], &["greeter/#"], &[])).unwrap();
    let mixed = Credentials { broker: ours.broker, endpoints: ours.endpoints, ..theirs };
    let file = stranger.keys().join("mixed.toml");
    mixed.save(&file).unwrap();
    let output = python_greeter().arg("--creds").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refuses this key"), "{output:?}");
}
