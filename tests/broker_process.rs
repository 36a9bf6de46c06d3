//! The real `bus broker` in a process of its own, so that its memory, descriptors and processor time
//! can be read, and it can be stopped, killed and started again.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use interlock_bus::{Client, Credentials, Endpoint, KeyStore, PeerName};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{TestProcess, ledger, runtime::tool};

/// The child and its key store.
pub(crate) struct BrokerProcess {
    process: TestProcess,
    pub(crate) store: KeyStore,
    /// TCP first, then the socket in the file system.
    pub(crate) endpoints: Vec<Endpoint>,
    directory: tempfile::TempDir,
    auditor: OnceLock<Client>,
}

impl BrokerProcess {
    pub(crate) fn start() -> Self {
        // Private: the tool refuses a data directory that others can read.
        let directory =
            tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let endpoints =
            vec!["tcp://127.0.0.1:0".parse().unwrap(), Endpoint::Ipc(directory.path().join("bus.sock"))];
        let (process, endpoints) = launch(directory.path(), &endpoints);
        Self { process, store, endpoints, directory, auditor: OnceLock::new() }
    }

    /// Kills it without a word.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same endpoints.
    pub(crate) fn restart(&mut self) {
        (self.process, self.endpoints) = launch(self.directory.path(), &self.endpoints);
        self.auditor = OnceLock::new();
    }

    pub(crate) fn enrol(
        &self,
        name: &str,
        publish: &[&str],
        subscribe: &[&str],
        serve: &[&str],
        request: &[&str],
    ) -> Credentials {
        let permissions = interlock_bus::Permissions::from_lists(publish, subscribe, serve, request).unwrap();
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

    /// A client that may ask the broker everything and takes no part in the traffic.
    pub(crate) fn auditor(&self) -> &Client {
        self.auditor.get_or_init(|| ledger::auditor(&self.store, &self.endpoints))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.process.id().to_string()).join(file)
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
        self.process.is_alive()
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // Whatever the test did: nothing may be unaccounted for at its end.
        if !std::thread::panicking() && self.is_alive() {
            ledger::assert_balances(&ledger::auditor(&self.store, &self.endpoints));
        }
    }
}

/// Starts the broker on a data directory and waits until it listens; the endpoints it found.
fn launch(directory: &Path, endpoints: &[Endpoint]) -> (TestProcess, Vec<Endpoint>) {
    let mut command: Command = tool("bus");
    command.arg("--data-dir").arg(directory).arg("broker");
    for endpoint in endpoints {
        command.arg("--listen").arg(endpoint.to_string());
    }
    let process = TestProcess::spawn(command);
    let found = endpoints.iter().map(|_| {
        let line = process.line();
        line.strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}`")).parse().unwrap()
    });
    let found = found.collect();
    (process, found)
}

/// Lets this process, and those it starts, open as many files as the system allows.
pub(crate) fn raise_limit_on_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
