//! libzmq's side: `libzmq/peer.c`, compiled against the system's library by the bench itself.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::Process;

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

/// A proxy with CURVE on both sides, in a process of its own.
#[derive(Debug)]
pub struct Proxy {
    /// Its process.
    pub process: Process,
    /// Where publishers, or requesters, connect.
    pub front: String,
    /// Where subscribers, or servers, connect.
    pub back: String,
    key: String,
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
            crate::report::say(&format!("libzmq is left out; for the comparison: {INSTALL}"));
            return None;
        }
        let output = Command::new(&program).arg("version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(Self { program, _directory: directory, version })
    }

    /// Starts a proxy: `XSUB` and `XPUB`, or `ROUTER` and `DEALER`.
    pub fn proxy(&self, sockets: &str) -> Proxy {
        let process = Process::start("the proxy", Command::new(&self.program).args(["proxy", sockets]));
        let mut words = process.expect("ready").into_iter();
        let mut word = || words.next().unwrap_or_default();
        Proxy { front: word(), back: word(), key: word(), process }
    }

    /// Starts one of its clients: `publish`, `subscribe`, `request`, `reply`.
    pub fn peer(&self, role: &str, proxy: &Proxy, endpoint: &str, arguments: &[String]) -> Process {
        let mut command = Command::new(&self.program);
        Process::start(role, command.args([role, endpoint, &proxy.key]).args(arguments))
    }
}
