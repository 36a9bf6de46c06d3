//! A broker in a process of its own, so that its memory, descriptors and processor time can be read.
//!
//! The process is this test binary again, running the one test [`serve_until_standard_input_ends`].

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use interlock_bus::{Broker, BrokerConfig, Credentials, Endpoint, KeyStore, PeerName, Permissions, Timeouts};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::DEADLINE;

const DIRECTORY: &str = "INTERLOCK_TEST_BROKER";
const HANDSHAKE_MS: &str = "INTERLOCK_TEST_HANDSHAKE_MS";

/// The child and its key store.
pub(crate) struct BrokerProcess {
    child: Child,
    pub(crate) store: KeyStore,
    pub(crate) endpoints: Vec<Endpoint>,
    directory: tempfile::TempDir,
}

impl BrokerProcess {
    pub(crate) fn start(handshake: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broker_process::serve_until_standard_input_ends", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .env(HANDSHAKE_MS, handshake.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, found) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, endpoints)) = line.split_once("endpoints: ") {
                    let _ = sender.send(endpoints.to_owned());
                }
            }
        });
        let line = found.recv_timeout(DEADLINE).expect("the broker's process did not start");
        let endpoints = line.split(' ').map(|endpoint| endpoint.parse().unwrap()).collect();
        Self { child, store, endpoints, directory }
    }

    pub(crate) fn enrol(
        &self,
        name: &str,
        publish: &[&str],
        subscribe: &[&str],
        serve: &[&str],
        request: &[&str],
    ) -> Credentials {
        let permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
        let name: PeerName = name.parse().unwrap();
        self.store.issue(&name, &permissions, &self.endpoints, None).unwrap()
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        Credentials::path_in(&self.directory.path().join("keys"), &name.parse().unwrap())
    }

    /// Its data directory; the key store is in `keys`.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    }

    /// Processor time of all its threads so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(self.proc("task")).unwrap();
        let nanoseconds = tasks.map(|task| {
            let statistics = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            statistics.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets this process, and those it starts, open as many files as the system allows.
pub(crate) fn raise_limit_on_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
#[ignore = "not a test: the process that other tests start"]
fn serve_until_standard_input_ends() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let milliseconds = std::env::var(HANDSHAKE_MS).unwrap().parse().unwrap();
    let store = KeyStore::open(&directory.join("keys")).unwrap();
    let endpoints = vec!["tcp://127.0.0.1:0".parse().unwrap(), Endpoint::Ipc(directory.join("bus.sock"))];
    let mut config = BrokerConfig::from_key_store(&store, endpoints).unwrap();
    config.timeouts = Timeouts { handshake: Duration::from_millis(milliseconds), ..Timeouts::default() };
    let broker = Broker::start(config).unwrap();
    let endpoints: Vec<String> = broker.endpoints().iter().map(Endpoint::to_string).collect();
    #[allow(clippy::print_stdout, reason = "the line that the parent waits for")]
    {
        println!("endpoints: {}", endpoints.join(" "));
    }
    let _ = std::io::stdin().read(&mut [0]);
    broker.stop(Duration::ZERO);
}
