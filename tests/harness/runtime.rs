//! The real `interlock` binary on a temporary directory.

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{DEADLINE, TestProcess, eventually};

/// The directory of the binaries, which `cargo test` does not build by itself: built once.
pub(crate) fn binaries() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let directory = test.parent().and_then(Path::parent).unwrap().to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--workspace", "--bins", "--examples"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
        build.env("CARGO_TARGET_DIR", directory.parent().unwrap());
        if directory.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the binaries do not build");
        directory
    })
}

/// A command of one of the binaries.
pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.env_remove("INTERLOCK_DATA_DIR").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// A running instance and its data directory, which may be started several times.
pub(crate) struct TestRuntime {
    // Dropped first: the process ends before its directory goes.
    pub(crate) process: TestProcess,
    pub(crate) directory: tempfile::TempDir,
    /// Variables for every verb, as for the process itself.
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
    http: reqwest::blocking::Client,
}

/// Settings every test needs: ports that the system chooses.
pub(crate) const CONFIG: &str =
    "[bus]\nendpoints = [\"ipc\", \"tcp://127.0.0.1:0\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n";

impl TestRuntime {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts with more settings (whole TOML sections) and waits until everything is ready.
    pub(crate) fn start_with(settings: &str) -> Self {
        let runtime = Self::begin_with(settings, |_| ());
        runtime.wait_until_ready();
        runtime
    }

    /// Starts with settings under which not everything gets ready; waits until commands are answered.
    pub(crate) fn start_degraded_with(settings: &str) -> Self {
        let runtime = Self::begin_with(settings, |_| ());
        eventually("the runtime to answer", || {
            let answer =
                runtime.http.get(runtime.url("/health")?).bearer_auth(runtime.token()?).send().ok()?;
            answer.status().is_success().then_some(())
        });
        runtime
    }

    /// Starts, with more settings and a changed command, and waits for nothing.
    pub(crate) fn begin_with(settings: &str, change: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("interlock.toml"), format!("{CONFIG}{settings}")).unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        Self::on_with(directory, change)
    }

    /// Starts on a directory that is prepared, and waits for nothing.
    pub(crate) fn on(directory: tempfile::TempDir) -> Self {
        Self::on_with(directory, |_| ())
    }

    /// The same, with a changed command.
    pub(crate) fn on_with(directory: tempfile::TempDir, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Self::command(directory.path());
        change(&mut command);
        let process = TestProcess::spawn(command);
        // The provider is process-wide; a second installation finds the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::blocking::Client::builder().timeout(DEADLINE * 3).build().unwrap();
        Self { process, directory, environment: Vec::new(), http }
    }

    pub(crate) fn command(directory: &Path) -> Command {
        let mut command = tool("interlock");
        command.arg("run").arg("--config").arg(directory.join("interlock.toml"));
        command.arg("--data-dir").arg(directory.join("data"));
        // So that whatever it starts can be told by its environment, and leaves its files here.
        command.env("TMPDIR", directory.join("tmp"));
        command
    }

    /// Starts again on the same directory.
    pub(crate) fn restart(&mut self) {
        self.process = TestProcess::spawn(Self::command(self.directory.path()));
        self.wait_until_ready();
    }

    pub(crate) fn wait_until_ready(&self) {
        eventually("the runtime to be ready", || self.is_ready());
    }

    pub(crate) fn is_ready(&self) -> Option<()> {
        let answer = self.http.get(self.url("/health/ready")?).bearer_auth(self.token()?).send().ok()?;
        answer.status().is_success().then_some(())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn instance(&self) -> Option<Value> {
        let text = std::fs::read(self.data().join("run/instance.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn url(&self, path: &str) -> Option<String> {
        let gateway = self.instance()?["gateway"].as_str()?.trim_end_matches('/').to_owned();
        Some(if gateway.starts_with("http") {
            format!("{gateway}{path}")
        } else {
            format!("http://{gateway}{path}")
        })
    }

    pub(crate) fn token(&self) -> Option<String> {
        let token = std::fs::read_to_string(self.data().join("run/gateway-token")).ok()?;
        Some(token.trim().to_owned())
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::blocking::Response {
        self.http.get(self.url(path).unwrap()).bearer_auth(self.token().unwrap()).send().unwrap()
    }

    pub(crate) fn http(&self) -> &reqwest::blocking::Client {
        &self.http
    }

    /// One turn; every event as its name and data, to the end of the stream.
    pub(crate) fn turn(&self, conversation: &str, text: &str) -> Vec<(String, Value)> {
        let url = self.url(&format!("/v1/conversations/{conversation}/messages")).unwrap();
        let answer = self
            .http
            .post(url)
            .bearer_auth(self.token().unwrap())
            .json(&serde_json::json!({ "text": text }))
            .send()
            .unwrap();
        if !answer.status().is_success() {
            return vec![("refused".to_owned(), answer.json().unwrap_or_default())];
        }
        events(answer)
    }

    /// A verb of `interlock` on this data directory.
    pub(crate) fn interlock(&self, arguments: &[&str]) -> Output {
        let mut command = tool("interlock");
        command.args(arguments).arg("--data-dir").arg(self.data());
        command.envs(self.environment.iter().cloned()).output().unwrap()
    }

    /// A verb of `bus` on this data directory.
    pub(crate) fn bus(&self, arguments: &[&str]) -> Output {
        let mut command = tool("bus");
        command.args(arguments).arg("--data-dir").arg(self.data());
        command.output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.interlock(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Processes that belong to this data directory, by what their command line or environment names.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let needle = self.directory.path().to_str().unwrap().as_bytes().to_vec();
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let names_us = ["cmdline", "environ"].iter().any(|file| {
                let mut text = Vec::new();
                let _ = std::fs::File::open(entry.path().join(file))
                    .and_then(|mut file| file.read_to_end(&mut text));
                text.windows(needle.len()).any(|window| window == needle)
            });
            if names_us {
                found.insert(pid);
            }
        }
        found
    }
}

impl Drop for TestRuntime {
    fn drop(&mut self) {
        self.process.kill();
        // The grace of its programs is theirs: whoever is left would use it after the test. One more look after each
        // round, for those who were just being started.
        for _ in 0..1000 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                // Errors mean that it is gone already.
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// The events of a stream, to its end.
pub(crate) fn events(mut answer: reqwest::blocking::Response) -> Vec<(String, Value)> {
    let mut text = String::new();
    let begun = Instant::now();
    // A connection that breaks shows in what is missing.
    let _ = answer.read_to_string(&mut text);
    assert!(begun.elapsed() < DEADLINE * 3, "the stream did not end");
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    text.split("\n\n")
        .filter_map(|block| {
            let data = field(block, "data:")?;
            Some((field(block, "event:")?, serde_json::from_str(&data).unwrap()))
        })
        .collect()
}

/// The text of a turn's final event.
pub(crate) fn final_text(turn: &[(String, Value)]) -> String {
    let (name, data) = turn.last().expect("a turn has an end");
    assert_eq!(name, "final", "{turn:?}");
    data["text"].as_str().unwrap_or_else(|| panic!("no text in {data}")).to_owned()
}
