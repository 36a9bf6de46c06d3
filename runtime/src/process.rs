//! Programs in any language as supervised children.
//!
//! A program is started by a small [`guardian`]: the same binary, a process of its own, which holds the program's
//! process group and a socket whose other end is ours. When our end closes, however we die, it stops the whole group,
//! waits the grace, and kills. So no program outlives the runtime by more than its grace.

mod descendants;
pub mod guardian;
pub mod memory;
mod output;
mod probe;

#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fmt,
    io::{BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use interlock_actors::{
    actor::Failure,
    host::{Busy, Exit, Host, HostReport, Load, Reports, Stop},
};
use interlock_bus::PeerName;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

pub use self::probe::{Probe, ProbeError};
use self::{
    guardian::{Charge, GUARDIAN_ARGUMENT, Notice, Order},
    output::{LastLine, Stream},
};
use crate::config::duration;

/// Between two questions to a program whose URL does not answer yet.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// A program, and how it is run.
#[derive(Clone)]
pub struct Program {
    /// Its file, or a name to be found in `PATH`.
    pub command: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Environment variables on top of ours. Ours that begin with `INTERLOCK_` are not inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it runs; `None` is where we run.
    pub directory: Option<PathBuf>,
    /// Its credentials on the bus.
    pub credentials: Credentials,
    /// How it says that it is ready.
    pub readiness: Readiness,
    /// How long it may go without sending `WATCHDOG=1` to the socket in `NOTIFY_SOCKET`, once it is ready; it finds this
    /// time in `WATCHDOG_USEC`. `None`: it need not send it.
    pub heartbeat: Option<Duration>,
    /// A URL that must answer with a success whenever it is asked whether it lives. `None`: it lives if it runs.
    pub liveness: Option<Probe>,
    /// Told of each incarnation that was started, and then says what is seen of it from outside. Must not wait.
    pub watched: Option<Arc<dyn Fn(OutsideSignal) + Send + Sync>>,
    /// Lines that others wait for.
    pub awaited: Vec<regex_lite::Regex>,
    /// What asks it to stop.
    pub stop_signal: Signal,
    /// How long it may take to stop, also when it is the runtime that died. Then it is killed.
    pub grace: Duration,
    /// What runs the guardian.
    pub guardian: GuardianCommand,
}

impl Program {
    /// A program without arguments and credentials that is ready as soon as it runs.
    pub fn new(command: impl Into<OsString>) -> Self {
        Self {
            command: command.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            credentials: Credentials::None,
            readiness: Readiness::Started,
            heartbeat: None,
            liveness: None,
            watched: None,
            awaited: Vec::new(),
            stop_signal: Signal::SIGTERM,
            grace: Duration::from_secs(10),
            guardian: GuardianCommand::default(),
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither arguments nor environment: people put secrets there.
        formatter.debug_struct("Program").field("command", &self.command).finish_non_exhaustive()
    }
}

/// How a program gets its credentials file's content.
#[derive(Clone)]
pub enum Credentials {
    /// It is not on the bus.
    None,
    /// Asked for each incarnation; the text can be read once from the descriptor whose number is in
    /// `INTERLOCK_CREDENTIALS_FD`, and is never on disk.
    Descriptor(Arc<IssueCredentials>),
    /// `INTERLOCK_CREDENTIALS` names this file.
    File(PathBuf),
}

/// Makes the credentials of an incarnation.
pub type IssueCredentials = dyn Fn(u64) -> Result<IssuedCredentials, Failure> + Send + Sync;

/// The text of a credentials file for one incarnation; void when dropped, which is when that has ended.
pub struct IssuedCredentials {
    text: String,
    revoke: Option<Box<dyn FnOnce() + Send>>,
}

impl IssuedCredentials {
    /// `revoke` makes them void. It must not wait.
    pub fn new(text: String, revoke: impl FnOnce() + Send + 'static) -> Self {
        Self { text, revoke: Some(Box::new(revoke)) }
    }

    /// What the file would say.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for IssuedCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IssuedCredentials").finish_non_exhaustive()
    }
}

impl Drop for IssuedCredentials {
    fn drop(&mut self) {
        if let Some(revoke) = self.revoke.take() {
            revoke();
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::Descriptor(_) => formatter.write_str("Descriptor"),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How a program says that it is ready.
#[derive(Clone)]
pub enum Readiness {
    /// It says nothing: it is ready when it runs.
    Started,
    /// It writes a newline to the descriptor whose number is in `INTERLOCK_READY_FD`, and in `NOTIFY_FD` for programs
    /// that know it under that name. Text before the newline is shown as its status.
    Newline,
    /// It sends `READY=1` to the socket in `NOTIFY_SOCKET` (`sd_notify`). `STATUS=` is shown, and counts as progress;
    /// `INTERLOCK_IMPAIRED=` and a reason says that it does less than it should, and without one takes that back.
    SdNotify,
    /// It writes a line that matches to its standard output or error.
    Line(regex_lite::Regex),
    /// A URL of it answers with a success.
    Http(Probe),
    /// Something else knows, for example the bus, by its presence: [`Program::watched`].
    Watched,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Started => "Started",
            Self::Newline => "Newline",
            Self::SdNotify => "SdNotify",
            Self::Line(_) => "Line",
            Self::Http(_) => "Http",
            Self::Watched => "Watched",
        })
    }
}

/// Says of one incarnation of a program what is seen of it from outside. After its end it has no effect.
#[derive(Clone, Debug)]
pub struct OutsideSignal {
    reports: Reports,
}

impl OutsideSignal {
    pub(crate) fn new(reports: Reports) -> Self {
        Self { reports }
    }

    /// It is ready; `proof` says how that is known.
    pub fn ready(&self, proof: impl Into<String>) {
        self.reports.send(HostReport::Ready { proof: proof.into() });
    }

    /// It runs, and does less than it should: why; `None` takes that back.
    pub fn impaired(&self, why: Option<String>) {
        self.reports.send(HostReport::Impaired(why));
    }
}

/// What runs the guardian: this very binary, whose `main` begins with [`guardian::run_if_asked`].
#[derive(Clone, Debug)]
pub struct GuardianCommand {
    /// The binary.
    pub binary: PathBuf,
    /// What makes it the guardian.
    pub arguments: Vec<OsString>,
    /// Environment variables on top of ours.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for GuardianCommand {
    fn default() -> Self {
        // Not `current_exe`: an upgrade may have replaced the file, and this still is the binary that runs.
        let binary = PathBuf::from("/proc/self/exe");
        Self { binary, arguments: vec![GUARDIAN_ARGUMENT.into()], environment: Vec::new() }
    }
}

/// Hosts a [`Program`].
pub struct ProgramHost {
    name: PeerName,
    program: Arc<Program>,
    /// Makes the program afresh for each incarnation.
    remake: Option<Box<dyn Fn() -> Program + Send>>,
    present: Option<Arc<Line>>,
}

impl ProgramHost {
    /// A host that runs `program` under `name`.
    pub fn new(name: PeerName, program: Program) -> Self {
        Self { name, program: Arc::new(program), remake: None, present: None }
    }

    /// A host whose program is made afresh for each incarnation, as its settings then are.
    pub fn remade(name: PeerName, make: impl Fn() -> Program + Send + 'static) -> Self {
        let mut host = Self::new(name, Program::new(""));
        host.remake = Some(Box::new(make));
        host
    }
}

impl fmt::Debug for ProgramHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ProgramHost").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Host for ProgramHost {
    fn start(&mut self, incarnation: u64, reports: Reports) {
        if let Some(make) = &self.remake {
            self.program = Arc::new(make());
        }
        let line = Arc::new(Line::default());
        self.present = Some(line.clone());
        let run = Run { name: self.name.clone(), program: self.program.clone(), incarnation, line, reports };
        let reports = run.reports.clone();
        // Ends with the guardian, whose end it waits for; not joined, its last act is the report.
        let thread =
            std::thread::Builder::new().name(format!("program-{}", self.name)).spawn(move || run.run());
        if let Err(error) = thread {
            reports.send(HostReport::Exited(Exit::Failed(
                Failure::from(error).context("no thread could be started"),
            )));
        }
    }

    fn stop(&mut self, _: Stop) {
        self.order(Order::Stop);
    }

    fn kill(&mut self, _: bool) {
        self.order(Order::Kill);
    }

    fn abandon(&mut self, _: bool) {
        if let Some(line) = self.present.take() {
            line.kill_all();
        }
    }

    fn ask(&mut self, nonce: u64) {
        self.order(Order::Ask(nonce));
    }

    fn busy(&self) -> Option<Busy> {
        None
    }

    fn load(&self) -> Load {
        let program = self.present.as_ref().and_then(|line| line.lock().program);
        Load { process: program.map(|pid| pid.as_raw().cast_unsigned()), ..Load::default() }
    }
}

impl ProgramHost {
    fn order(&self, order: Order) {
        if let Some(line) = &self.present {
            line.order(order);
        }
    }
}

impl Drop for ProgramHost {
    fn drop(&mut self) {
        // The line closes with the thread that reads it; the guardian must not wait for that.
        self.order(Order::Kill);
    }
}

/// Our end of the socket to a guardian, and what is known about the other side.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<LineState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    socket: Option<UnixStream>,
    /// The last order to end, also if it came before there was a guardian.
    ending: Option<Order>,
    guardian: Option<Pid>,
    program: Option<Pid>,
    /// The guardian's; it removes it, unless it was killed.
    directory: Option<PathBuf>,
    /// Valid as long as they are here.
    credentials: Option<IssuedCredentials>,
    /// Whether its status is that its URL did not answer as it should.
    probe_failed: bool,
}

impl Line {
    fn order(&self, order: Order) {
        let mut state = self.lock();
        if order != Order::Stop || state.ending != Some(Order::Kill) {
            if !matches!(order, Order::Ask(_)) {
                state.ending = Some(order);
            }
            state.send(&order);
        }
    }

    /// The guardian is there: it gets the charge, and an order that came too early.
    fn connect(&self, mut socket: UnixStream, guardian: Pid, charge: &Charge) -> Result<(), Failure> {
        // Known before it is spoken to: one that does not listen can be killed.
        self.lock().guardian = Some(guardian);
        let mut text = serde_json::to_string(charge)?;
        text.push('\n');
        socket.write_all(text.as_bytes())?;
        // An order must never make the supervisor wait; the guardian reads at once, so this is not met.
        socket.set_write_timeout(Some(Duration::from_millis(10)))?;
        let mut state = self.lock();
        state.socket = Some(socket);
        if let Some(order) = state.ending {
            state.send(&order);
        }
        Ok(())
    }

    /// Whether there is a guardian.
    fn is_up(&self) -> bool {
        self.lock().guardian.is_some()
    }

    /// Waits until there is no guardian any more, and at most for `time`.
    fn wait_for_end(&self, time: Duration) {
        let waited = self.ended.wait_timeout_while(self.lock(), time, |state| state.guardian.is_some());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Without the guardian: for when it is the guardian that does not answer.
    fn kill_all(&self) {
        let mut state = self.lock();
        state.credentials = None;
        // Errors mean that they are gone already.
        if let Some(program) = state.program {
            let _ = killpg(program, Signal::SIGKILL);
        }
        if let Some(guardian) = state.guardian {
            // While it is there: nobody else holds those that have left the group.
            descendants::kill_those_of(guardian);
            let _ = kill(guardian, Signal::SIGKILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineState {
    fn send(&mut self, order: &Order) {
        if let Some(socket) = &mut self.socket {
            let text = serde_json::to_string(order).expect("an order is plain data") + "\n";
            if let Err(error) = socket.write_all(text.as_bytes()) {
                // The guardian is gone; its reader reports that.
                tracing::debug!(%error, ?order, "the guardian did not take an order");
            }
        }
    }
}

/// One incarnation, on its thread.
struct Run {
    name: PeerName,
    program: Arc<Program>,
    incarnation: u64,
    line: Arc<Line>,
    reports: Reports,
}

impl Run {
    fn run(self) {
        let exit = self.live().unwrap_or_else(Exit::Failed);
        self.line.lock().credentials = None;
        self.reports.send(HostReport::Exited(exit));
    }

    fn live(&self) -> Result<Exit, Failure> {
        let charge = self.charge()?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut guardian = self.spawn(theirs)?;
        let pid = Pid::from_raw(guardian.id().cast_signed());
        let readers = self.read_output(&mut guardian)?;
        let connected = ours.try_clone().map_err(Failure::from).and_then(|socket| {
            self.line
                .connect(socket, pid, &charge)
                .map_err(|failure| failure.context("its guardian did not start"))
        });
        let said = connected.and_then(|()| self.listen(ours));

        if said.is_err() {
            self.line.kill_all();
        }
        let waited = guardian.wait();
        // From here on the numbers may belong to others.
        let (ending, directory) = {
            let mut state = self.line.lock();
            (state.socket, state.guardian, state.program) = (None, None, None);
            (state.ending, state.directory.take())
        };
        if let Some(directory) = directory {
            if said.is_err() {
                descendants::kill_those_left_with(&guardian::notify_socket(&directory));
            }
            // Mostly it is gone already.
            let _ = std::fs::remove_dir_all(directory);
        }
        self.line.ended.notify_all();
        let last = readers.into_iter().filter_map(|reader| reader.join().ok().flatten()).last();
        waited?;
        Ok(self.judge(ending, said?, last))
    }

    fn charge(&self) -> Result<Charge, Failure> {
        let program = &*self.program;
        let (credentials, credentials_file) = match &program.credentials {
            Credentials::None => (None, None),
            Credentials::Descriptor(issue) => {
                let issued = issue(self.incarnation)
                    .map_err(|failure| failure.context("no credentials were issued"))?;
                let text = issued.text().to_owned();
                self.line.lock().credentials = Some(issued);
                (Some(text), None)
            }
            Credentials::File(path) => (None, Some(path.clone().into_os_string())),
        };
        let mut environment = program.environment.clone();
        environment.extend(credentials_file.map(|path| ("INTERLOCK_CREDENTIALS".into(), path)));
        Ok(Charge {
            command: program.command.clone(),
            arguments: program.arguments.clone(),
            environment,
            directory: program.directory.clone().map(PathBuf::into_os_string),
            credentials,
            notify_fd: matches!(program.readiness, Readiness::Newline),
            notify_ready: matches!(program.readiness, Readiness::SdNotify),
            heartbeat: program.heartbeat,
            stop_signal: program.stop_signal as i32,
            grace: program.grace,
        })
    }

    fn spawn(&self, control: UnixStream) -> Result<Child, Failure> {
        let GuardianCommand { binary, arguments, environment } = &self.program.guardian;
        Command::new(binary)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Out of the terminal's foreground group: Ctrl-C is for the runtime, which then asks in order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Failure::from(error).context(format!("guardian `{}` was not started", binary.display()))
            })
    }

    fn read_output(
        &self,
        guardian: &mut Child,
    ) -> Result<Vec<std::thread::JoinHandle<Option<LastLine>>>, Failure> {
        let ready = match &self.program.readiness {
            Readiness::Line(pattern) => Some((pattern.clone(), self.reports.clone())),
            _ => None,
        };
        let stdout = guardian.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe)));
        let stderr = guardian.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe)));
        let readers = stdout.into_iter().chain(stderr).map(|(stream, pipe)| {
            let (name, ready) = (self.name.clone(), ready.clone());
            let (mut awaited, reports) = (self.program.awaited.clone(), self.reports.clone());
            // Joined in `live`, after the guardian's end closed the pipe.
            let thread = std::thread::Builder::new().name(format!("{}-{name}", stream.as_str()));
            let read = move || {
                output::capture(&name, stream, pipe.into(), |line| {
                    if let Some((pattern, reports)) = &ready
                        && pattern.is_match(line)
                    {
                        reports.send(HostReport::Ready { proof: format!("it wrote `{line}`") });
                    }
                    // Each is told of once.
                    awaited.retain(|pattern| {
                        let is_it = pattern.is_match(line);
                        if is_it {
                            reports.send(HostReport::Seen(pattern.as_str().to_owned()));
                        }
                        !is_it
                    });
                })
            };
            Ok(thread.spawn(read)?)
        });
        readers.collect()
    }

    /// Hears the guardian out. The last notice is how the program ended.
    fn listen(&self, socket: UnixStream) -> Result<Ended, Failure> {
        for text in BufReader::new(socket).lines() {
            match serde_json::from_str(&text?)? {
                Notice::Started { pid, directory } => {
                    self.line.lock().directory = Some(directory);
                    self.on_started(pid);
                }
                Notice::Ready { proof } => self.reports.send(HostReport::Ready { proof }),
                Notice::Status(status) => self.reports.send(HostReport::Progress(status)),
                Notice::Impaired(why) => self.reports.send(HostReport::Impaired(why)),
                Notice::Extend(by) => self.reports.send(HostReport::Extend(by)),
                Notice::Alive(nonce) => self.on_alive(nonce),
                Notice::Refused { reason } => {
                    let command = self.program.command.display();
                    return Err(Failure::new(reason).context(format!("`{command}` was not started")));
                }
                Notice::Exited { code, signal, overdue } => return Ok(Ended { code, signal, overdue }),
            }
        }
        Err(Failure::new("its guardian died"))
    }

    fn on_started(&self, pid: i32) {
        self.line.lock().program = Some(Pid::from_raw(pid));
        self.reports.send(HostReport::Progress(format!("pid {pid}")));
        match &self.program.readiness {
            Readiness::Started => {
                self.reports.send(HostReport::Ready { proof: format!("runs as pid {pid}") })
            }
            Readiness::Http(probe) => self.probe_until_ready(probe.clone()),
            Readiness::Newline | Readiness::SdNotify | Readiness::Line(_) | Readiness::Watched => {}
        }
        if let Some(watch) = &self.program.watched {
            watch(OutsideSignal::new(self.reports.clone()));
        }
    }

    /// Asks its URL until it answers with a success, or the incarnation ends.
    fn probe_until_ready(&self, probe: Probe) {
        let (line, reports) = (Arc::clone(&self.line), self.reports.clone());
        self.beside("readiness", move || {
            while line.is_up() {
                if let Some(proof) = ask_and_say(&probe, &line, &reports) {
                    return reports.send(HostReport::Ready { proof });
                }
                line.wait_for_end(PROBE_PAUSE);
            }
        });
    }

    /// The guardian found it running. That is all, unless its URL must answer too.
    fn on_alive(&self, nonce: u64) {
        let alive = HostReport::Alive { nonce };
        let Some(probe) = self.program.liveness.clone() else { return self.reports.send(alive) };
        let (line, reports) = (Arc::clone(&self.line), self.reports.clone());
        // One question at a time, each bounded, so at most one of these threads is there.
        self.beside("liveness", move || {
            if ask_and_say(&probe, &line, &reports).is_some() {
                reports.send(alive);
            }
        });
    }

    /// Does `work` on a thread of its own, which ends with what it waits for.
    fn beside(&self, what: &str, work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name(format!("{what}-{}", self.name));
        if let Err(error) = thread.spawn(work) {
            tracing::error!(program = %self.name, %error, what, "it cannot be probed: no thread could be started");
        }
    }

    fn judge(&self, ending: Option<Order>, ended: Ended, last: Option<LastLine>) -> Exit {
        let stop_signal = self.program.stop_signal as i32;
        let as_asked = ended.signal == Some(stop_signal) || ended.code == Some(128 + stop_signal);
        match (ending, ended) {
            (_, Ended { code: Some(0), .. }) => Exit::Normal,
            (Some(Order::Stop), _) if as_asked => Exit::Normal,
            (Some(Order::Kill), _) => Exit::Killed,
            (Some(Order::Stop), Ended { overdue: true, .. }) => {
                let grace = duration::brief(self.program.grace);
                Exit::Forced(Failure::new(format!("did not stop within its grace of {grace}, killed")))
            }
            (_, ended) => {
                let failure = Failure::new(ended.to_string());
                Exit::Failed(match last {
                    Some(LastLine(line)) => Failure::new(line).context(failure.to_string()),
                    None => failure,
                })
            }
        }
    }
}

/// Asks once. A failure becomes the program's status, and the first success after it as well; what it answered, if
/// that was a success.
fn ask_and_say(probe: &Probe, line: &Line, reports: &Reports) -> Option<String> {
    let asked = probe.ask();
    let had_failed = std::mem::replace(&mut line.lock().probe_failed, asked.is_err());
    match asked {
        Ok(status) => {
            let answered = format!("{probe} answered {status}");
            if had_failed {
                reports.send(HostReport::Status(answered.clone()));
            }
            Some(answered)
        }
        Err(error) => {
            reports.send(HostReport::Status(error.to_string()));
            None
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    /// Whether its grace was over before that.
    overdue: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(formatter, "exited with code {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => write!(formatter, "ended by signal {signal}"),
                Err(_) => write!(formatter, "ended by signal {signal}"),
            },
            (None, None) => formatter.write_str("ended in an unknown way"),
        }
    }
}
