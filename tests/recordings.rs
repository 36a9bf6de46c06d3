//! `bus record` and `bus replay` as processes: killed, ended, and their files read by MCAP's own library.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    time::Duration,
};

use interlock_bus::{Client, ConnectOptions, Payload, PublishOptions, blocking};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    broker_process::BrokerProcess,
    harness::{DEADLINE, TestProcess, eventually, runtime::tool},
};

struct Stage {
    broker: BrokerProcess,
    publisher: Client,
}

fn stage() -> Stage {
    let broker = BrokerProcess::start();
    let publisher = broker.enrol("ada", &["#"], &[], &[], &[]);
    broker.enrol("recorder", &[], &["#"], &[], &["$sys/#"]);
    let publisher = Client::connect_blocking(ConnectOptions::new(publisher)).unwrap();
    Stage { broker, publisher }
}

impl Stage {
    fn record(&self, file: &Path) -> TestProcess {
        let mut command = tool("bus");
        command.args(["record", "turns/#", "--creds"]).arg(self.broker.path_of("recorder"));
        command.arg("--output").arg(file);
        let process = TestProcess::spawn(command);
        let topic = "turns/x".parse().unwrap();
        blocking::wait(self.publisher.wait_for_subscribers(&topic, 1, DEADLINE)).unwrap();
        process
    }

    fn publish(&self, number: usize) {
        let topic = format!("turns/{}", number % 3).parse().unwrap();
        let payload = Payload::json(&number).unwrap();
        let sent = self.publisher.publish_acknowledged(&topic, payload, PublishOptions::default());
        blocking::wait(sent).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.broker.directory().join(name)
    }
}

/// The file as MCAP's library for Python gives it: how many messages its index counts, and the messages.
fn read(file: &Path) -> (Option<u64>, Vec<Value>) {
    let seen = TestProcess::python("recording.py", &[file.to_str().unwrap()]).json();
    (seen["counted"].as_u64(), seen["messages"].as_array().unwrap().clone())
}

/// Waits until so many messages stand in a file that is being written. A reader that comes while the file grows finds
/// neither the old end nor the new one, and comes again.
fn until_it_has(file: &Path, count: usize) {
    eventually("the messages to be in the recording", || {
        let line = TestProcess::python("recording.py", &[file.to_str().unwrap()]).line_within(DEADLINE)?;
        let seen: Value = serde_json::from_str(&line).unwrap();
        (seen["messages"].as_array().unwrap().len() == count).then_some(())
    });
}

fn expected(count: usize) -> Vec<Value> {
    let topic = |number: usize| format!("turns/{}", number % 3);
    let message = |number: usize| serde_json::json!([topic(number), "json", "ada", number.to_string()]);
    (0..count).map(message).collect()
}

#[test]
fn a_recording_that_is_ended_has_everything_and_an_index_for_other_tools() {
    let stage = stage();
    let file = stage.file("whole.mcap");
    let mut recording = stage.record(&file);
    (0..100).for_each(|number| stage.publish(number));
    until_it_has(&file, 100);
    recording.signal(Signal::SIGINT);
    let last = recording.line();
    assert!(last.starts_with("100 messages ("), "{last}");
    assert_eq!(recording.exit_code(), Some(0));
    assert_eq!(read(&file), (Some(100), expected(100)));
    let listed = tool("bus").args(["replay", "--list"]).arg(&file).output().unwrap();
    let messages = String::from_utf8(listed.stderr).unwrap();
    assert_eq!((listed.status.code(), messages.as_str()), (Some(0), ""));
}

#[test]
fn a_recording_whose_program_is_killed_opens_everywhere_and_lacks_at_most_its_last_second() {
    let stage = stage();
    let file = stage.file("killed.mcap");
    let mut recording = stage.record(&file);
    (0..200).for_each(|number| stage.publish(number));
    until_it_has(&file, 200);
    (200..300).for_each(|number| stage.publish(number));
    recording.kill();
    let (counted, messages) = read(&file);
    assert!(counted.is_none() && (200..=300).contains(&messages.len()), "{}", messages.len());
    assert_eq!(messages, expected(messages.len()));
    let listed = tool("bus").args(["replay", "--list"]).arg(&file).output().unwrap();
    let note = String::from_utf8(listed.stderr).unwrap();
    assert!(listed.status.success() && note.contains("at most its last second is missing"), "{note}");
}

#[test]
fn a_replay_of_a_killed_recording_publishes_what_is_in_it() {
    let stage = stage();
    let file = stage.file("killed.mcap");
    let mut recording = stage.record(&file);
    (0..50).for_each(|number| stage.publish(number));
    until_it_has(&file, 50);
    recording.kill();
    let again = stage.file("again.mcap");
    let second = stage.record(&again);
    let mut command = tool("bus");
    command.args(["replay", "--rate", "max", "--creds"]).arg(stage.broker.path_of("ada")).arg(&file);
    let replayed = command.output().unwrap();
    let messages = String::from_utf8_lossy(&replayed.stderr);
    assert!(replayed.status.success(), "{messages}");
    until_it_has(&again, 50);
    second.signal(Signal::SIGTERM);
    assert!(second.line_within(Duration::from_secs(30)).is_some_and(|line| line.starts_with("50 messages")));
    assert_eq!(read(&again), (Some(50), expected(50)));
}

#[test]
fn a_recorder_says_that_its_broker_went_and_came_back_and_marks_the_place() {
    let mut stage = stage();
    let file = stage.file("restarted.mcap");
    let mut command = tool("bus");
    command.args(["record", "turns/#", "--creds"]).arg(stage.broker.path_of("recorder"));
    command.arg("--output").arg(&file).stderr(std::process::Stdio::piped());
    let mut recording = TestProcess::spawn(command);
    let mut notes = std::io::BufReader::new(recording.stderr().unwrap()).lines().map(Result::unwrap);
    assert!(notes.next().unwrap().contains("recording to"));
    stage.broker.kill();
    let lost = notes.next().unwrap();
    assert!(lost.contains("the link to the broker is lost"), "{lost}");
    stage.broker.restart();
    let back = notes.next().unwrap();
    assert!(back.contains("the broker is back"), "{back}");
    recording.signal(Signal::SIGTERM);
    assert!(recording.line().starts_with("0 messages"));
    let gap = notes.next().unwrap();
    assert!(gap.contains("missing at 1 places, 0 as far as is known"), "{gap}");
    assert_eq!(recording.exit_code(), Some(7));
}

#[test]
fn a_recorder_ends_when_it_is_asked_to_although_messages_never_stop() {
    let stage = stage();
    let file = stage.file("flood.mcap");
    let recording = stage.record(&file);
    let mut flood = tool("bus");
    flood.args(["pub", "turns/0", "again and again", "--acknowledged", "false", "--count", "1000000000"]);
    let mut flood = TestProcess::spawn({
        flood.arg("--creds").arg(stage.broker.path_of("ada"));
        flood
    });
    eventually("much to be recorded", || {
        std::fs::metadata(&file).is_ok_and(|file| file.len() > 100_000).then_some(())
    });
    recording.signal(Signal::SIGINT);
    let last = recording.line_within(Duration::from_secs(30)).expect("a last line");
    assert!(last.contains(" messages ("), "{last}");
    assert!(flood.is_alive(), "the flood ended by itself");
    // What the recorder could not take is in the file as gaps, and its exit code says so.
    let listed = tool("bus").args(["replay", "--list", "--json"]).arg(&file).output().unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
}
