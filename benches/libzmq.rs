//! libzmq's side: `libzmq/peer.c`, compiled against the system's library by the bench itself.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use interlock_bus::{Credentials, Endpoint};

use crate::{
    arguments::Arguments,
    process::Process,
    report::{Report, say},
};

/// How to get what the comparison needs.
const INSTALL: &str = "apt-get install gcc libzmq3-dev";

/// The compiled program.
#[derive(Debug)]
pub struct Libzmq {
    program: PathBuf,
    _directory: tempfile::TempDir,
    /// The library's version.
    pub version: String,
}

/// Where a program of libzmq's side connects, and as whom.
#[derive(Clone, Debug)]
pub struct Server {
    endpoint: String,
    key: String,
    /// Its own keys, public then secret; it makes a pair if there are none.
    keys: Option<(String, String)>,
}

impl Server {
    /// Our broker, for a peer with these credentials.
    pub fn of_credentials(credentials: &Credentials, endpoint: &Endpoint) -> Self {
        let keys = (credentials.keys.public.to_string(), credentials.keys.secret.expose_z85().to_string());
        Self { endpoint: endpoint.to_string(), key: credentials.broker.to_string(), keys: Some(keys) }
    }
}

/// A proxy with CURVE on both sides, in a process of its own.
#[derive(Debug)]
pub struct Proxy {
    /// Its process.
    pub process: Process,
    /// Where publishers, or requesters, connect.
    pub front: Server,
    /// Where subscribers, or servers, connect.
    pub back: Server,
}

impl Libzmq {
    /// Compiles the program; without a compiler or the library, says how to get them and gives `None`.
    ///
    /// # Panics
    /// If there is no temporary directory.
    pub fn compile() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let program = directory.path().join("libzmq-peer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("libzmq").join("peer.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let compiled = Command::new(compiler)
            .args(["-O2", "-Wall", "-o"])
            .arg(&program)
            .arg(source)
            .args(["-lzmq", "-lpthread"])
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            say(&format!("libzmq is left out; for the comparison: {INSTALL}"));
            return None;
        }
        let output = Command::new(&program).arg("version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(Self { program, _directory: directory, version })
    }

    /// Compiles it unless only our side is wanted, and puts its version into the report.
    pub fn beside(arguments: &Arguments, report: &mut Report) -> Option<Self> {
        let libzmq = arguments.wants("libzmq").then(Self::compile).flatten()?;
        report.line(&format!("- libzmq: {}", libzmq.version));
        Some(libzmq)
    }

    /// Starts a proxy: `XSUB` and `XPUB` for `publish`, `ROUTER` and `DEALER` for `request`.
    pub fn proxy(&self, sockets: &str) -> Proxy {
        let process = Process::start(
            "the proxy",
            Command::new(&self.program).arg("proxy").arg(format!("sockets={sockets}")),
        );
        let words = process.expect("ready");
        let [front, back, key] = &words[..] else { panic!("the proxy said `{words:?}`") };
        let server = |endpoint: &String| Server { endpoint: endpoint.clone(), key: key.clone(), keys: None };
        Proxy { front: server(front), back: server(back), process }
    }

    /// Starts one of its programs: `publish`, `subscribe`, `request` and so on; `peer.c` has the list.
    pub fn peer(&self, role: &str, server: &Server, arguments: &[(&'static str, String)]) -> Process {
        let mut command = Command::new(&self.program);
        command.arg(role);
        command.arg(format!("endpoint={}", server.endpoint)).arg(format!("server-key={}", server.key));
        command.args(arguments.iter().map(|(name, value)| format!("{name}={value}")));
        if let Some((public, secret)) = &server.keys {
            command.env("PEER_PUBLIC_KEY", public).env("PEER_SECRET_KEY", secret);
        }
        Process::start(role, &mut command)
    }
}
