//! What the chapters share: a broker on a temporary directory, child processes whose lines are
//! awaited with a deadline.

pub(crate) mod clock;
pub(crate) mod dice;
pub(crate) mod kept;
pub(crate) mod ledger;
pub(crate) mod model_server;
pub(crate) mod runtime;
pub(crate) mod web;

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Credentials, Endpoint, KeyStore, PeerName, Permissions,
};

/// How long anything may take that should come at once; generous, because CI machines are busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A broker in this process, with its key store in a temporary directory.
pub(crate) struct TestBroker {
    pub(crate) handle: BrokerHandle,
    pub(crate) store: KeyStore,
    pub(crate) directory: tempfile::TempDir,
}

impl TestBroker {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// A broker whose configuration is changed before it starts.
    pub(crate) fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let endpoints =
            vec!["tcp://127.0.0.1:0".parse().unwrap(), Endpoint::Ipc(directory.path().join("bus.sock"))];
        let mut config = BrokerConfig::from_key_store(&store, endpoints).unwrap();
        change(&mut config);
        let handle = Broker::start(config).unwrap();
        Self { handle, store, directory }
    }

    /// Enrols a peer; the broker looks for edits before it refuses a key.
    pub(crate) fn enrol(
        &self,
        name: &str,
        publish: &[&str],
        subscribe: &[&str],
        serve: &[&str],
        request: &[&str],
    ) -> PathBuf {
        let permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
        let name: PeerName = name.parse().unwrap();
        self.store.issue(&name, &permissions, self.handle.endpoints(), None).unwrap();
        Credentials::path_in(&self.keys(), &name)
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        // Whatever the test did: nothing may be unaccounted for at its end.
        if !std::thread::panicking() && self.handle.ended().borrow().is_none() {
            ledger::assert_balances(&ledger::auditor(&self.store, self.handle.endpoints()));
        }
        self.handle.stop(Duration::from_secs(1));
    }
}

/// A child process whose standard output is read line by line, with a deadline, and that never
/// outlives the test.
pub(crate) struct TestProcess {
    child: Child,
    /// Locked, so that threads of a test can share what owns the process.
    lines: std::sync::Mutex<std::sync::mpsc::Receiver<String>>,
}

impl TestProcess {
    pub(crate) fn spawn(mut command: Command) -> Self {
        // A group of its own, so that what it starts (a browser) ends with it.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines: std::sync::Mutex::new(lines) }
    }

    /// A scenario of one of the scripts beside this file.
    pub(crate) fn python(script: &str, arguments: &[&str]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
        let mut command = Command::new("python3");
        command.arg(path).args(arguments);
        Self::spawn(command)
    }

    /// The next line of its output.
    pub(crate) fn line(&self) -> String {
        self.lines.lock().unwrap().recv_timeout(DEADLINE).unwrap_or_else(|error| {
            panic!("no line came: {error}; is pyzmq installed? `pip install pyzmq`, see README.md")
        })
    }

    /// The next line, if one comes soon enough.
    pub(crate) fn line_within(&self, time: Duration) -> Option<String> {
        self.lines.lock().unwrap().recv_timeout(time).ok()
    }

    /// The next line as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("`{line}` is no JSON: {error}"))
    }

    /// Its standard error, if that was piped.
    pub(crate) fn stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end and gives the exit code; `None` if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually("the process to end", || child.try_wait().unwrap()).code()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `probe` gives something.
///
/// Counts the time in which it was able to look: while this process is suspended, nobody has waited.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    const LOOK: Duration = Duration::from_millis(5);
    let (mut waited, mut looked) = (Duration::ZERO, Instant::now());
    loop {
        if let Some(found) = probe() {
            return found;
        }
        waited += looked.elapsed().min(200 * LOOK);
        looked = Instant::now();
        assert!(waited < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(LOOK);
    }
}
