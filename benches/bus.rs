//! Our side: a broker in a process of its own, on a key store in a temporary directory.

use std::{path::Path, time::Duration};

use interlock_bus::{
    Broker, BrokerConfig, Client, ConnectOptions, Credentials, Endpoint, KeyStore, PeerName, Permissions,
    broker::raise_open_files_limit,
};

use crate::{arguments::Arguments, process::Process, report::say};

/// The key store makes its own directory, with the modes it wants.
const KEYS: &str = "keys";

/// A broker and where its credentials are made.
#[derive(Debug)]
pub struct Bus {
    /// The broker's process.
    pub broker: Process,
    /// Where it listens.
    pub endpoint: Endpoint,
    store: KeyStore,
    directory: tempfile::TempDir,
}

impl Bus {
    /// Starts the role `broker` of this bench.
    ///
    /// # Panics
    /// If the broker does not come up.
    pub fn start() -> Self {
        Self::start_with(|directory| Process::role("broker", &[("directory", directory)]))
    }

    /// Lets `start` start the role `broker` on this directory.
    ///
    /// # Panics
    /// If the broker does not come up.
    pub fn start_with(start: impl FnOnce(String) -> Process) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (store, _) =
            KeyStore::open_or_create(&directory.path().join(KEYS)).expect("a key store can be made");
        let broker = start(directory.path().display().to_string());
        let endpoint = broker.expect("ready").remove(0).parse().expect("a broker prints its endpoint");
        Self { broker, store, endpoint, directory }
    }

    /// Enrols a peer that may do everything, and gives the path of its credentials.
    ///
    /// # Panics
    /// If the key store does not take it.
    pub fn enrol(&self, name: &str) -> String {
        let all: &[&str] = &["#"];
        let mut permissions = Permissions::from_lists(all, all, all, all).expect("`#` is a filter");
        permissions.wait = true;
        let name: PeerName = name.parse().expect("benches choose legal names");
        self.store
            .issue(&name, &permissions, std::slice::from_ref(&self.endpoint), None)
            .expect("a fresh key store takes a new name");
        Credentials::path_in(&self.directory.path().join(KEYS), &name).display().to_string()
    }

    /// [`Bus::enrol`], read back for a program that takes no such file.
    ///
    /// # Panics
    /// If the key store does not take it.
    pub fn credentials(&self, name: &str) -> Credentials {
        Credentials::load(Path::new(&self.enrol(name))).expect("it has just been written")
    }
}

/// The role `broker`: serves until it is killed.
///
/// # Panics
/// If it cannot start.
pub fn broker(arguments: &Arguments) {
    let directory = arguments.text("directory").expect("the role `broker` is given its directory");
    let store = KeyStore::open(&Path::new(directory).join(KEYS)).expect("the bench has made the key store");
    let endpoints = vec!["tcp://127.0.0.1:0".parse().expect("an endpoint")];
    let config = BrokerConfig::from_key_store(&store, endpoints).expect("a fresh registry can be read");
    raise_open_files_limit();
    let handle = Broker::start(config).expect("a broker can start on a free port");
    say(&format!("ready {}", handle.endpoints()[0]));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// How a role connects with the credentials it was given.
///
/// # Panics
/// If they cannot be read.
pub fn connect_options(arguments: &Arguments) -> ConnectOptions {
    let path = arguments.text("credentials").expect("the role is given its credentials");
    ConnectOptions::new(Credentials::load(Path::new(path)).expect("the bench has written them"))
}

/// A client with these credentials.
///
/// # Panics
/// If it cannot connect.
pub fn client(arguments: &Arguments) -> Client {
    Client::connect_blocking(connect_options(arguments)).expect("the broker is there")
}
