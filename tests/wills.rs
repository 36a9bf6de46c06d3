use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, Credentials, Payload, PeerName, PublishError,
    blocking::wait,
    client::{ConnectOptions, Event, SubscribeOptions, Subscription},
};

use crate::harness::{DEADLINE, TestBroker, TestProcess};

fn connect(broker: &TestBroker, name: &str, publish: &[&str], subscribe: &[&str]) -> Client {
    let credentials = Credentials::load(&broker.enrol(name, publish, subscribe, &[], &[])).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

/// Hears wills and presence in one queue, so that their order is seen.
struct Watcher {
    client: Client,
    heard: Subscription,
    presence: Subscription,
}

impl Watcher {
    fn new(broker: &TestBroker) -> Self {
        let client = connect(broker, "watcher", &[], &["wills/#", "$peers/#"]);
        let subscribe = |filter: &str| {
            wait(client.subscribe(&filter.parse().unwrap(), SubscribeOptions::default())).unwrap()
        };
        let (heard, presence) = (subscribe("wills/#"), subscribe("$peers/mortal"));
        Self { heard, presence, client }
    }

    /// The sequence and the state of the next event of presence.
    fn presence(&mut self) -> (u64, String) {
        let Event::Message(message) = self.presence.next_blocking(Instant::now() + DEADLINE).unwrap() else {
            panic!("a gap")
        };
        let event: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        (message.sequence, event["state"].as_str().unwrap().to_owned())
    }

    /// Sequence, origin and text of the next will.
    fn will(&mut self) -> (u64, String, String) {
        let Event::Message(message) = self.heard.next_blocking(Instant::now() + DEADLINE).unwrap() else {
            panic!("a gap")
        };
        (message.sequence, message.origin.to_string(), message.text().unwrap().to_owned())
    }

    /// That no will came before everything that the broker has done by now.
    fn heard_no_will(&mut self) {
        wait(self.client.ping()).unwrap();
        assert!(self.heard.next_blocking(Instant::now() + Duration::from_millis(1)).is_err());
    }
}

#[test]
fn a_process_that_is_killed_leaves_its_will_before_its_presence_ends_unless_it_took_it_back() {
    let broker = TestBroker::start();
    let mut watcher = Watcher::new(&broker);
    let credentials = broker.enrol("mortal", &["wills/#"], &[], &[], &[]);
    let mut process = mortal(
        &credentials,
        "bus.set_will('wills/mortal', 'first'); bus.set_will('wills/mortal', 'gone', retain=True)",
    );
    assert_eq!(watcher.presence().1, "connected");
    watcher.heard_no_will();
    process.kill();
    let (will, origin, text) = watcher.will();
    assert_eq!((origin.as_str(), text.as_str()), ("mortal", "gone"));
    let (end, state) = watcher.presence();
    assert_eq!(state, "disconnected");
    assert!(will < end, "the will came as {will}, the end of presence as {end}");
    // It is the topic's last value.
    let late = connect(&broker, "late", &[], &["wills/#"]);
    let options = SubscribeOptions { retained: true, ..SubscribeOptions::default() };
    let mut late = wait(late.subscribe(&"wills/#".parse().unwrap(), options)).unwrap();
    let Event::Message(kept) = late.next_blocking(Instant::now() + DEADLINE).unwrap() else {
        panic!("a gap")
    };
    assert!(kept.retained && kept.text() == Some("gone"));

    mortal(
        &credentials,
        "bus.set_will('wills/mortal', 'again'); bus.clear_will(); bus.publish_acknowledged('wills/x', '')",
    )
    .kill();
    assert_eq!([watcher.presence().1, watcher.presence().1], ["connected", "disconnected"]);
    assert_eq!(watcher.will().2, "", "only what it published itself");
    watcher.heard_no_will();
}

/// A process with a session, when it has done what `script` says.
fn mortal(credentials: &Path, script: &str) -> TestProcess {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python");
    let script = format!(
        "import sys, time; sys.path.insert(0, '{}')\nimport interlock\nbus = interlock.connect(sys.argv[1])\n\
         {script}\nprint('ready', flush=True)\ntime.sleep(1000)",
        module.display()
    );
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(credentials);
    let process = TestProcess::spawn(command);
    assert_eq!(process.line(), "ready");
    process
}

#[test]
fn whoever_says_goodbye_leaves_no_will_and_a_revoked_peer_may_not() {
    let broker = TestBroker::start();
    let mut watcher = Watcher::new(&broker);
    let topic = "wills/mortal".parse().unwrap();
    let credentials = Credentials::load(&broker.enrol("mortal", &["wills/#"], &[], &[], &[])).unwrap();
    let mortal = || {
        let options = ConnectOptions::new(credentials.clone()).timeout(DEADLINE);
        let client = Client::connect_blocking(options).unwrap();
        wait(client.set_will(&topic, Payload::text("gone"), false)).unwrap();
        client
    };
    mortal().close_blocking();
    assert_eq!([watcher.presence().1, watcher.presence().1], ["connected", "disconnected"]);
    watcher.heard_no_will();

    let name: PeerName = "mortal".parse().unwrap();
    let revoked = mortal();
    broker.store.revoke(&name).unwrap();
    assert_eq!([watcher.presence().1, watcher.presence().1], ["connected", "disconnected"]);
    watcher.heard_no_will();
    drop(revoked);
}

#[test]
fn a_will_that_may_not_be_published_is_denied_when_it_is_deposited() {
    let broker = TestBroker::start();
    let client = connect(&broker, "mortal", &["wills/#"], &[]);
    let closed = "closed/mortal".parse().unwrap();
    let denied = wait(client.set_will(&closed, Payload::text("gone"), false)).unwrap_err();
    assert!(
        matches!(&denied, PublishError::Denied { denial, .. } if denial.code == "not_permitted"),
        "{denied}"
    );
    let large = Payload::bytes(vec![0; interlock_bus::limits::WILL_BYTES_MAX]);
    let refused = wait(client.set_will(&"wills/mortal".parse().unwrap(), large, false)).unwrap_err();
    assert!(matches!(&refused, PublishError::TooLarge { .. }), "{refused}");
}
