//! Standard error of the runtime: a thing that happened is told there, and once.

use std::{
    fs::{self, File},
    os::unix::fs::DirBuilderExt,
};

use nix::sys::signal::Signal;

use crate::harness::{
    eventually,
    runtime::{TestRuntime, tool},
};

#[test]
fn a_warning_of_the_broker_is_on_standard_error_once_and_in_the_log() {
    const WARNING: &str = "authorised peers not read again; the old rules stay";
    let place = tempfile::tempdir().unwrap();
    let said = place.path().join("stderr");
    let mut runtime = TestRuntime::begin_with("", |command| {
        command.stderr(File::create(&said).unwrap());
    });
    runtime.wait_until_ready();
    let registry = runtime.data().join("keys/authorized.toml");
    let damaged = fs::read_to_string(&registry).unwrap() + "\nthis is no registry\n";
    // At once, so that it is one edit: a file that is emptied and written may be seen empty, which is another mistake.
    let edited = place.path().join("edited");
    fs::write(&edited, damaged).unwrap();
    fs::rename(&edited, &registry).unwrap();
    // When the log has it both ways to standard error have been gone.
    eventually("the log to have the warning", || {
        let log = runtime.interlock(&["logs", "--text", "not read again"]);
        String::from_utf8(log.stdout).unwrap().contains(WARNING).then_some(())
    });
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    let said = fs::read_to_string(&said).unwrap();
    assert_eq!(said.matches(WARNING).count(), 1, "{said}");
}

#[test]
fn a_start_that_fails_says_why_once() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
    fs::write(data.join("interlock.db"), vec![7; 100_000]).unwrap();
    let mut command = tool("interlock");
    command.args(["--set", "gateway.listen=127.0.0.1:0", "--set", "bus.endpoints=[\"ipc\"]", "--data-dir"]);
    let output = command.arg(&data).output().unwrap();
    let [data, messages] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let all = format!("{data}{messages}");
    assert_eq!(output.status.code(), Some(4), "{all}");
    assert!(messages.contains("interlock: database `"), "{all}");
    assert_eq!(all.matches("restore the key file").count(), 1, "{all}");
    assert!(!data.contains("is stopping"), "what has not started is not listed: {all}");
}
