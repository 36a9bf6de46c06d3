//! Child processes: their lines, awaited with a deadline, and the processor time they use.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long any line of a child may take.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// A child that is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Starts a command.
    ///
    /// # Panics
    /// If it cannot be started: a bench without its processes has nothing to say.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} with `{command:?}`: {error}"));
        let output = BufReader::new(child.stdout.take().expect("stdout was asked for as a pipe"));
        let (sender, lines) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { name: name.to_owned(), child, lines }
    }

    /// Starts this same program in a role.
    pub fn role(role: &str, arguments: &[(&'static str, String)]) -> Self {
        let program = std::env::current_exe().expect("the system knows the running program");
        Self::role_of(&mut Command::new(program), role, arguments)
    }

    /// Starts this same program in a role, by a command to which only the role is missing.
    pub fn role_of(command: &mut Command, role: &str, arguments: &[(&'static str, String)]) -> Self {
        command.args(["--role", role]);
        for (name, value) in arguments {
            command.arg(format!("--{name}")).arg(value);
        }
        Self::start(role, command)
    }

    /// The words of the next line, which must begin with `word`.
    ///
    /// # Panics
    /// If another line comes, or none within a minute.
    pub fn expect(&self, word: &str) -> Vec<String> {
        let line = self.lines.recv_timeout(LINE_TIMEOUT);
        let line = line.unwrap_or_else(|error| panic!("{} was to say `{word}`: {error}", self.name));
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some(word), "{} said `{line}`", self.name);
        words.collect()
    }

    /// Whether a line that begins with `word` has come, without waiting.
    ///
    /// # Panics
    /// If it has ended without that line.
    pub fn has_said(&self, word: &str) -> bool {
        match self.lines.try_recv() {
            Ok(line) => line.starts_with(word),
            Err(mpsc::TryRecvError::Empty) => false,
            Err(mpsc::TryRecvError::Disconnected) => panic!("{} ended before it said `{word}`", self.name),
        }
    }

    /// The first line that is what is looked for; others are passed over.
    ///
    /// # Panics
    /// If none comes.
    pub fn find(&self, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(LINE_TIMEOUT);
            let line = line.unwrap_or_else(|error| panic!("{} did not say it: {error}", self.name));
            if is_it(&line) {
                return line;
            }
        }
    }

    /// The words of the next line, which must begin with `word`, as numbers.
    ///
    /// # Panics
    /// As [`Process::expect`]; if there are fewer numbers.
    pub fn expect_numbers<const N: usize>(&self, word: &str) -> [f64; N] {
        let words = self.expect(word);
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        std::array::from_fn(|at| {
            number(at).unwrap_or_else(|| panic!("{} said `{word} {words:?}`", self.name))
        })
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).expect("the process lives");
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// If it is gone already, or the system cannot wait for it.
    pub fn end(mut self) {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("a child can be waited for");
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time of all its threads so far.
    pub fn cpu(&self) -> Duration {
        cpu(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds with the cargo that runs this bench, as it was built, and gives the directory of the results. A
/// directory below that of the bench's own keeps what is built in another way apart.
///
/// # Panics
/// If that fails.
pub fn build(arguments: &[&str], below: Option<&str>) -> PathBuf {
    let own = std::env::current_exe().expect("the system knows the running program");
    let target = own.ancestors().nth(3).expect("cargo puts a bench into TARGET/release/deps");
    let target = below.map_or(target.to_owned(), |below| target.join(below));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["build", "--release", "--target-dir"])
        .arg(&target)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "`cargo build --release {}` failed",
        arguments.join(" ")
    );
    target.join("release")
}

/// Processor time of all living threads of a process, from the scheduler's own clock; zero if it is gone.
pub fn cpu(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Processor time of the living threads of this process, by their names, of which the system keeps 15 bytes.
pub fn cpu_by_thread() -> BTreeMap<String, Duration> {
    let mut found: BTreeMap<String, Duration> = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let nanoseconds = read("schedstat").split_whitespace().next().and_then(|word| word.parse().ok());
        *found.entry(read("comm").trim().to_owned()).or_default() +=
            Duration::from_nanos(nanoseconds.unwrap_or(0));
    }
    found
}

/// A process and all that it has started.
pub fn with_descendants(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>())
            .collect();
        found.extend(children);
        at += 1;
    }
    found
}

/// Memory of a process in KiB that is in RAM; zero if it is gone.
pub fn resident_kib(process: u32) -> u64 {
    memory_kib(process, "status", "VmRSS:")
}

/// Memory of a process in KiB, with its share of what it shares; zero if it is gone.
pub fn proportional_kib(process: u32) -> u64 {
    memory_kib(process, "smaps_rollup", "Pss:")
}

fn memory_kib(process: u32, file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
