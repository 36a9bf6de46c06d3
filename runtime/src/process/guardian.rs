//! The guardian: a process between the runtime and one program. It does nothing but hold the program's life.
//!
//! | it sees | it does |
//! |---|---|
//! | the order to stop, a signal to itself, the runtime's death | asks the whole group, waits the grace, kills |
//! | the order to kill | kills the group |
//! | the program's end | asks what it left behind, waits the grace, kills; then reports the end, and ends |
//!
//! It is the subreaper of its descendants, so one that left the group still is its child once its parent has died,
//! and is found and killed; nothing becomes a zombie. It is told what to do by lines of JSON on its standard input (a
//! socket, answered on the same); its standard output and error are the program's.

use std::{
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            net::{UnixDatagram, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getpgid, mkdtemp},
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::descendants::{MARK, children};

/// The hidden subcommand.
pub const GUARDIAN_ARGUMENT: &str = "__guardian";

/// Notices between the guardian's threads and its main one. A further one waits.
const EVENTS_MAX: usize = 64;

/// Bytes of credentials that are passed through a pipe; it holds them until they are read.
const CREDENTIALS_BYTES_MAX: usize = 32 << 10;

/// Bytes of one `sd_notify` datagram; the rest is cut off.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// What the guardian is charged with.
#[derive(Serialize, Deserialize)]
pub(super) struct Charge {
    pub(super) command: OsString,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: Option<OsString>,
    pub(super) credentials: Option<String>,
    pub(super) notify_fd: bool,
    /// Whether `READY=1` on the notify socket counts.
    pub(super) notify_ready: bool,
    /// The longest that it may be silent once it is asked whether it lives.
    pub(super) heartbeat: Option<Duration>,
    pub(super) stop_signal: i32,
    pub(super) grace: Duration,
}

/// From the runtime to the guardian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    Stop,
    Kill,
    /// Whether the program is there and not suspended.
    Ask(u64),
}

/// From the guardian to the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Notice {
    /// The program runs. The directory is this guardian's, for its sockets; whoever outlives it removes it.
    Started {
        pid: i32,
        directory: PathBuf,
    },
    Refused {
        reason: String,
    },
    Ready {
        proof: String,
    },
    Status(String),
    /// It runs, and does less than it should: why.
    Impaired(Option<String>),
    Extend(Duration),
    Alive(u64),
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
        /// Whether its grace was over before that.
        overdue: bool,
    },
}

/// Everything that can wake the guardian. There is no other way in.
enum Event {
    Order(Order),
    RuntimeGone,
    Notice(Notice),
    /// It sent `WATCHDOG=1`.
    Heartbeat,
    Reaped {
        pid: Pid,
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// No descendant is left.
    Childless,
    /// The grace is over.
    GraceOver,
}

/// Runs as the guardian if the first argument says so. To be called first in `main`: `None` means to go on.
pub fn run_if_asked() -> Option<ExitCode> {
    let asked = std::env::args_os().nth(1).is_some_and(|argument| argument == GUARDIAN_ARGUMENT);
    asked.then(run)
}

/// Runs as the guardian.
pub(super) fn run() -> ExitCode {
    match guard() {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody to tell: the runtime hears that the socket has closed.
        Err(_) => ExitCode::FAILURE,
    }
}

fn guard() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut orders = BufReader::new(control.try_clone()?);
    let mut charge = String::new();
    orders.read_line(&mut charge)?;
    let charge: Charge = serde_json::from_str(&charge).map_err(io::Error::other)?;

    // Handled before the program is started: a signal meant for all processes of a session must not part the
    // guardian from its charge. Handled and not blocked, because the program would inherit a mask.
    let signals = Signals::catch()?;
    prctl::set_child_subreaper(true)?;

    let (sink, events) = sync_channel(EVENTS_MAX);
    let directory = NotifyDirectory::new()?;
    let notices = sink.clone();
    let program = match spawn(&charge, &directory, &notices) {
        Ok(program) => program,
        Err(error) => return tell(&control, &Notice::Refused { reason: error.to_string() }),
    };
    // From here on nothing may end the guardian before its charge. A runtime that is gone already is heard by `listen`.
    let _ = tell(&control, &Notice::Started { pid: program.as_raw(), directory: directory.0.clone() });
    if let Err(error) = hear(orders, signals, sink) {
        // Without ears there is nothing to wait for.
        let _ = killpg(program, Signal::SIGKILL);
        return Err(error);
    }

    let stop_signal = Signal::try_from(charge.stop_signal).unwrap_or(Signal::SIGTERM);
    let guardian = Guardian {
        program,
        control,
        events,
        stop_signal,
        grace: charge.grace,
        heartbeat: charge.heartbeat,
        beat_at: None,
        ended: None,
        overdue: false,
        stage: Stage::Watching,
    };
    guardian.watch()
}

/// Starts the guardian's threads. They end with the process: each waits in a system call that nothing else can end.
fn hear(orders: impl BufRead + Send + 'static, signals: Signals, sink: SyncSender<Event>) -> io::Result<()> {
    let (from_reaper, from_signals) = (sink.clone(), sink.clone());
    std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap(&from_reaper))?;
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || listen(orders, &sink))?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.pass_on(&from_signals))?;
    Ok(())
}

/// The signals by which people and service managers end things.
struct Signals {
    runtime: tokio::runtime::Runtime,
    caught: Vec<tokio::signal::unix::Signal>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let kinds =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let entered = runtime.enter();
        let caught = kinds.into_iter().map(signal).collect::<io::Result<_>>()?;
        drop(entered);
        Ok(Self { runtime, caught })
    }

    /// Each of them is an order to stop.
    fn pass_on(mut self, events: &SyncSender<Event>) {
        self.runtime.block_on(async {
            loop {
                let any = self.caught.iter_mut().map(|signal| Box::pin(signal.recv()));
                select_all(any).await;
                if events.send(Event::Order(Order::Stop)).is_err() {
                    return;
                }
            }
        });
    }
}

struct Guardian {
    program: Pid,
    control: UnixStream,
    events: Receiver<Event>,
    stop_signal: Signal,
    grace: Duration,
    heartbeat: Option<Duration>,
    /// The last heartbeat, or the first time it was asked for.
    beat_at: Option<Instant>,
    /// How the program ended: code and signal.
    ended: Option<(Option<i32>, Option<i32>)>,
    /// Whether its grace was over before that.
    overdue: bool,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Watching,
    Stopping { kill_at: Instant },
    Killing,
}

impl Guardian {
    fn watch(mut self) -> io::Result<()> {
        loop {
            match self.next_event() {
                Event::Order(Order::Ask(nonce)) => self.answer(nonce),
                Event::Order(Order::Stop) | Event::RuntimeGone => self.stop(),
                Event::Order(Order::Kill) => self.kill(),
                Event::GraceOver => {
                    self.overdue = self.ended.is_none();
                    self.kill();
                }
                Event::Heartbeat => self.beat_at = Some(Instant::now()),
                Event::Notice(Notice::Extend(by)) => self.extend(by),
                // Fails only when the runtime is gone, and that is an event of its own.
                Event::Notice(notice) => drop(tell(&self.control, &notice)),
                Event::Reaped { pid, code, signal } => self.on_reaped(pid, code, signal),
                Event::Childless => {
                    let (code, signal) = self.ended.unwrap_or_default();
                    return tell(&self.control, &Notice::Exited { code, signal, overdue: self.overdue });
                }
            }
        }
    }

    fn next_event(&self) -> Event {
        let event = match self.stage {
            Stage::Stopping { kill_at } => {
                self.events.recv_timeout(kill_at.saturating_duration_since(Instant::now()))
            }
            Stage::Watching | Stage::Killing => {
                self.events.recv().map_err(|_| RecvTimeoutError::Disconnected)
            }
        };
        match event {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::GraceOver,
            // The reaper says `Childless` before it ends, so this is not met.
            Err(RecvTimeoutError::Disconnected) => Event::Childless,
        }
    }

    /// Silent if the program is suspended, or owes a heartbeat: then it is not alive for anybody who waits for it.
    fn answer(&mut self, nonce: u64) {
        if let Some(limit) = self.heartbeat {
            let silent = self.beat_at.get_or_insert_with(Instant::now).elapsed();
            if silent > limit {
                let status =
                    format!("no heartbeat for {:.1} s; its limit is {limit:?}", silent.as_secs_f32());
                let _ = tell(&self.control, &Notice::Status(status));
                return;
            }
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.program)).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, None | Some('T' | 't' | 'Z' | 'X')) {
            let _ = tell(&self.control, &Notice::Alive(nonce));
        }
    }

    /// The supervisor decides how much of it is granted to a start; a stop is ours as well.
    fn extend(&mut self, by: Duration) {
        if let Stage::Stopping { kill_at } = &mut self.stage {
            *kill_at = (Instant::now() + by).max(*kill_at);
        }
        let _ = tell(&self.control, &Notice::Extend(by));
    }

    fn stop(&mut self) {
        if let Stage::Watching = self.stage {
            self.stage = Stage::Stopping { kill_at: Instant::now() + self.grace };
            self.signal_all(self.stop_signal);
            // A suspended program would not see it.
            self.signal_all(Signal::SIGCONT);
        }
    }

    fn kill(&mut self) {
        self.stage = Stage::Killing;
        self.signal_all(Signal::SIGKILL);
    }

    fn on_reaped(&mut self, pid: Pid, code: Option<i32>, signal: Option<i32>) {
        if pid == self.program {
            self.ended = Some((code, signal));
        }
        match self.stage {
            // What it left behind is ours now.
            Stage::Watching if pid == self.program => self.stop(),
            Stage::Stopping { .. } if pid == self.program => self.signal_all(self.stop_signal),
            // Each death may have handed us further descendants.
            Stage::Killing => self.signal_all(Signal::SIGKILL),
            Stage::Watching | Stage::Stopping { .. } => {}
        }
    }

    /// Signals the group, and those of our children that have left it.
    fn signal_all(&self, signal: Signal) {
        let children = children(Pid::this());
        let in_group = |pid: &Pid| getpgid(Some(*pid)) == Ok(self.program);
        // Only while a member is known to be there: an empty group's number may be given to others.
        // Errors mean that the receiver is gone already.
        if children.iter().any(in_group) {
            let _ = killpg(self.program, signal);
        }
        for child in children.iter().filter(|child| !in_group(child)) {
            let _ = kill(*child, signal);
        }
    }
}

fn spawn(charge: &Charge, directory: &NotifyDirectory, notices: &SyncSender<Event>) -> io::Result<Pid> {
    let mut command = Command::new(&charge.command);
    command.args(&charge.arguments).stdin(Stdio::null()).process_group(0);
    for (name, _) in std::env::vars_os() {
        let ours = name.as_encoded_bytes().starts_with(b"INTERLOCK_");
        // What our own service manager told us is not meant for it.
        let managers = [MARK, "NOTIFY_FD", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"];
        if ours || managers.iter().any(|manager| name == *manager) {
            command.env_remove(name);
        }
    }
    command.envs(charge.environment.iter().map(|(name, value)| (name, value)));
    if let Some(directory) = &charge.directory {
        command.current_dir(directory);
    }
    // Held open until the program has been started.
    let mut inherited: Vec<OwnedFd> = Vec::new();
    if let Some(credentials) = &charge.credentials {
        let descriptor = filled_pipe(credentials)?;
        command.env("INTERLOCK_CREDENTIALS_FD", descriptor.as_raw_fd().to_string());
        inherited.push(descriptor);
    }
    if charge.notify_fd {
        let (read, write) = io::pipe()?;
        let write = OwnedFd::from(write);
        inherit(&write)?;
        for name in ["INTERLOCK_READY_FD", "NOTIFY_FD"] {
            command.env(name, write.as_raw_fd().to_string());
        }
        inherited.push(write);
        let notices = notices.clone();
        std::thread::Builder::new().name("notify".to_owned()).spawn(move || hear_newline(read, &notices))?;
    }
    command.env(MARK, directory.socket());
    if let Some(limit) = charge.heartbeat {
        command.env("WATCHDOG_USEC", limit.as_micros().to_string());
    }
    let (socket, notices) = (UnixDatagram::bind(directory.socket())?, notices.clone());
    let notify_ready = charge.notify_ready;
    std::thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || hear_datagrams(&socket, notify_ready, &notices))?;
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Lets a descriptor pass to the program. Nothing else is started by this process.
fn inherit(descriptor: &OwnedFd) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// The reading end of a pipe that holds `text` and then ends.
fn filled_pipe(text: &str) -> io::Result<OwnedFd> {
    if text.len() > CREDENTIALS_BYTES_MAX {
        let reason =
            format!("the credentials are {} bytes long; the limit is {CREDENTIALS_BYTES_MAX}", text.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let (read, mut write) = io::pipe()?;
    write.write_all(text.as_bytes())?;
    let read = OwnedFd::from(read);
    inherit(&read)?;
    Ok(read)
}

fn hear_newline(pipe: io::PipeReader, notices: &SyncSender<Event>) {
    let mut line = String::new();
    // A program that closes the descriptor without a newline is not ready: the start deadline speaks.
    let heard = BufReader::new(pipe.take(DATAGRAM_BYTES_MAX as u64)).read_line(&mut line);
    if heard.is_ok() && line.ends_with('\n') {
        if !line.trim().is_empty() {
            let _ = notices.send(Event::Notice(Notice::Status(line.trim().to_owned())));
        }
        let _ = notices.send(Event::Notice(Notice::Ready {
            proof: "it wrote a newline to INTERLOCK_READY_FD".to_owned(),
        }));
    }
}

fn hear_datagrams(socket: &UnixDatagram, notify_ready: bool, notices: &SyncSender<Event>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    while let Ok(bytes) = socket.recv(&mut buffer) {
        for line in String::from_utf8_lossy(&buffer[..bytes]).lines() {
            let event = match line.split_once('=') {
                Some(("READY", "1")) if notify_ready => {
                    Event::Notice(Notice::Ready { proof: "it sent READY=1".to_owned() })
                }
                Some(("STATUS", status)) => Event::Notice(Notice::Status(status.to_owned())),
                Some(("INTERLOCK_IMPAIRED", why)) => {
                    Event::Notice(Notice::Impaired((!why.is_empty()).then(|| why.to_owned())))
                }
                Some(("WATCHDOG", "1")) => Event::Heartbeat,
                Some(("EXTEND_TIMEOUT_USEC", by)) => match by.parse() {
                    Ok(microseconds) => Event::Notice(Notice::Extend(Duration::from_micros(microseconds))),
                    Err(_) => continue,
                },
                _ => continue,
            };
            if notices.send(event).is_err() {
                return;
            }
        }
    }
}

fn listen(mut orders: impl BufRead, events: &SyncSender<Event>) {
    let mut line = String::new();
    while matches!(orders.read_line(&mut line), Ok(bytes) if bytes > 0) {
        if let Ok(order) = serde_json::from_str(&line)
            && events.send(Event::Order(order)).is_err()
        {
            return;
        }
        line.clear();
    }
    let _ = events.send(Event::RuntimeGone);
}

/// Reaps every descendant, until none is left.
fn reap(events: &SyncSender<Event>) {
    loop {
        let event = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => Event::Reaped { pid, code: Some(code), signal: None },
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Event::Reaped { pid, code: None, signal: Some(signal as i32) }
            }
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => {
                let _ = events.send(Event::Childless);
                return;
            }
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

fn tell(mut control: &UnixStream, notice: &Notice) -> io::Result<()> {
    let text = serde_json::to_string(notice)? + "\n";
    control.write_all(text.as_bytes())
}

/// The `sd_notify` socket in the directory of a guardian.
pub(super) fn notify_socket(directory: &Path) -> PathBuf {
    directory.join("notify")
}

/// A directory of our own for the `sd_notify` socket: nobody else can reach it. Removed when dropped.
struct NotifyDirectory(PathBuf);

impl NotifyDirectory {
    fn new() -> io::Result<Self> {
        Ok(Self(mkdtemp(&std::env::temp_dir().join("interlock-XXXXXX"))?))
    }

    fn socket(&self) -> PathBuf {
        notify_socket(&self.0)
    }
}

impl Drop for NotifyDirectory {
    fn drop(&mut self) {
        // Left behind, it would be an empty directory in the place for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
