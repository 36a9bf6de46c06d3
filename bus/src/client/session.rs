//! One session over a socket: handshake, hello, then batches both ways until it ends.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use mio::{Events, Poll, Token};

use super::{
    core::{Core, SessionEnd},
    link::Link,
    outgoing::{Batch, Demand, Outgoing},
    socket::Socket,
};
use crate::{
    crypto::PublicKey,
    keys::Credentials,
    limits,
    native::{BatchReader, BatchWriter, Record, RecordError},
    zmtp::{Command, Engine, EngineEvent, FrameFlags, ZmtpError},
};

/// The socket's events.
pub(super) const SOCKET: Token = Token(0);
/// The waker's events.
pub(super) const WAKER: Token = Token(1);

/// How long the broker may take to hear a goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Boxes sealed and written before the socket is read again.
const WRITE_TURN_BATCHES: usize = 8;
/// An output buffer above this is not kept when it is empty.
const OUTPUT_BYTES_KEPT: usize = 4 * limits::WRITE_BUFFER_BYTES;
/// The number of pings that only look for a sign of life.
const PING_NUMBER: u64 = u64::MAX;

/// What the client's thread has for all its sessions.
pub(super) struct Workbench<'a> {
    pub(super) core: &'a Core,
    pub(super) outgoing: &'a Outgoing,
    pub(super) poll: Poll,
    pub(super) events: Events,
    pub(super) scratch: Vec<u8>,
    /// Who the client is, and the broker's key; a session may bring a new one.
    pub(super) credentials: Credentials,
}

impl Workbench<'_> {
    /// Takes over a new key of the broker for the connections to come, and keeps it if there is a file.
    fn learn_broker_key(&mut self, key: PublicKey) {
        if self.credentials.broker == key {
            return;
        }
        let peer = self.credentials.name.clone();
        match self.credentials.learn_broker_key(key) {
            Ok(true) => {
                tracing::info!(%peer, broker_key = %key, "the broker has a new key; it is in the credentials file now")
            }
            Ok(false) => {
                tracing::info!(%peer, broker_key = %key, "the broker has a new key; it is kept in memory only")
            }
            Err(error) => tracing::warn!(
                %peer, broker_key = %key, %error,
                "the broker has a new key; it is kept in memory only, put it into the credentials file as `broker_key`"
            ),
        }
    }
}

/// Why a session ended or did not begin.
#[derive(Debug)]
pub(super) enum End {
    /// The owner closed the client, and the broker has heard it.
    Closed,
    /// The system's word on the socket.
    Io(io::Error),
    /// The broker closed the connection between two frames.
    PeerClosed,
    /// The connection broke the protocol below our records.
    Zmtp(ZmtpError),
    /// ERROR in clear text. It may be forged.
    PeerError { reason: String },
    /// What came is no record.
    Record(RecordError),
    /// The records say so.
    Said(SessionEnd),
    /// The handshake did not end before its deadline.
    TimedOut,
    /// No sign of life although asked for one.
    Silent,
    /// A frame was begun and not finished, or nothing of ours was taken.
    Stuck { what: &'static str },
    /// More control records than the broker takes.
    Overflowed,
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("closed by its owner"),
            Self::Io(error) => write!(formatter, "the connection broke: {error}"),
            Self::PeerClosed => formatter.write_str("the broker closed the connection"),
            Self::Zmtp(error) => error.fmt(formatter),
            Self::PeerError { reason } => {
                write!(formatter, "the broker refused the connection with ERROR `{reason}`")
            }
            Self::Record(error) => write!(formatter, "the broker broke the protocol: {error}"),
            Self::Said(end) => end.fmt(formatter),
            Self::TimedOut => formatter.write_str("the handshake did not end in time"),
            Self::Silent => write!(
                formatter,
                "the broker gave no sign of life for {:?}",
                limits::PING_INTERVAL + limits::PING_TIMEOUT
            ),
            Self::Stuck { what } => write!(formatter, "{what} for {:?}", limits::READ_TIMEOUT),
            Self::Overflowed => formatter.write_str("the broker does not take control records"),
        }
    }
}

impl From<ZmtpError> for End {
    fn from(error: ZmtpError) -> Self {
        Self::Zmtp(error)
    }
}

impl From<RecordError> for End {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Handshake,
    Hello,
    Open,
    /// Goodbye is in the output or said; the time bounds the wait for the broker's end.
    Closing {
        until: Instant,
        said: bool,
    },
}

/// One session.
pub(super) struct Session {
    socket: Socket,
    engine: Engine,
    stage: Stage,
    /// Bytes of the engine's output that are written.
    written: usize,
    input: BytesMut,
    reader: BatchReader,
    records: Vec<Record>,
    /// What the batch in hand says.
    new_broker_key: Option<PublicKey>,
    control: Batch,
    messages: Batch,
    readable: bool,
    writable: bool,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    frame_since: Option<Instant>,
    progress_at: Instant,
}

impl Session {
    pub(super) fn new(socket: Socket, engine: Engine) -> Self {
        let now = Instant::now();
        Self {
            socket,
            engine,
            stage: Stage::Connecting,
            written: 0,
            input: BytesMut::new(),
            reader: BatchReader::default(),
            records: Vec::new(),
            new_broker_key: None,
            control: Batch::default(),
            messages: Batch::default(),
            readable: false,
            writable: false,
            heard_at: now,
            pinged_at: None,
            frame_since: None,
            progress_at: now,
        }
    }

    /// What is awaited, for error messages.
    pub(super) fn awaited(&self) -> String {
        match self.stage {
            Stage::Connecting => "the connection".to_owned(),
            Stage::Handshake => self.engine.stage().to_string(),
            Stage::Hello => "the broker's hello".to_owned(),
            Stage::Open | Stage::Closing { .. } => "records".to_owned(),
        }
    }

    /// Whether the socket was connected at all.
    pub(super) fn is_connected(&self) -> bool {
        self.stage != Stage::Connecting
    }

    /// Goes on until the broker has said hello.
    pub(super) fn open(&mut self, bench: &mut Workbench<'_>, deadline: Instant) -> Result<(), End> {
        bench.core.begin_session();
        while self.stage != Stage::Open {
            if bench.outgoing.is_closing() {
                return Err(End::Closed);
            }
            self.turn(bench, Some(deadline))?;
        }
        Ok(())
    }

    /// Goes on until the session ends.
    pub(super) fn run(&mut self, bench: &mut Workbench<'_>) -> End {
        loop {
            if let Err(end) = self.turn(bench, None) {
                return match (self.stage, end) {
                    (Stage::Closing { .. }, End::PeerClosed | End::Said(SessionEnd::Goodbye { .. })) => {
                        End::Closed
                    }
                    (Stage::Closing { .. }, end) => {
                        tracing::debug!(%end, "the link broke while it was being closed");
                        End::Closed
                    }
                    (_, end) => end,
                };
            }
        }
    }

    /// Writes what is there, waits for one event, reads what has come.
    fn turn(&mut self, bench: &mut Workbench<'_>, deadline: Option<Instant>) -> Result<(), End> {
        if self.stage != Stage::Connecting {
            self.write(bench)?;
        }
        let now = Instant::now();
        let mut wake_at = self.check_clocks(bench, now)?;
        if let Some(deadline) = deadline {
            if now >= deadline {
                return Err(End::TimedOut);
            }
            wake_at = wake_at.min(deadline);
        }
        // What is left although the socket would take or give more is for the next turn.
        let may_write = self.writable && self.unsent() > 0 && self.stage != Stage::Connecting;
        let may_seal = self.unsent() == 0 && self.stage == Stage::Open && !bench.outgoing.sleep();
        let must_not_wait = self.readable || may_write || may_seal;
        let timeout = if must_not_wait { Duration::ZERO } else { wake_at.saturating_duration_since(now) };
        self.wait(bench, timeout)?;
        if self.stage == Stage::Connecting && self.writable {
            match self.socket.connected().map_err(End::Io)? {
                true => self.stage = Stage::Handshake,
                false => self.writable = false,
            }
        }
        if self.readable && self.stage != Stage::Connecting {
            self.read(bench)?;
        }
        Ok(())
    }

    fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Duration) -> Result<(), End> {
        match bench.poll.poll(&mut bench.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(End::Io(error)),
            _ => {}
        }
        for event in bench.events.iter().filter(|event| event.token() == SOCKET) {
            self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
            self.writable |= event.is_writable() || event.is_error();
        }
        Ok(())
    }

    /// Notices what should have happened by now. Returns when to look again.
    fn check_clocks(&mut self, bench: &Workbench<'_>, now: Instant) -> Result<Instant, End> {
        let mut wake_at = now + limits::PING_INTERVAL;
        if let Some(since) = self.frame_since {
            if now >= since + limits::READ_TIMEOUT {
                return Err(End::Stuck { what: "the broker did not finish a frame" });
            }
            wake_at = wake_at.min(since + limits::READ_TIMEOUT);
        }
        if self.unsent() > 0 && self.stage != Stage::Connecting {
            if now >= self.progress_at + limits::WRITE_TIMEOUT {
                return Err(End::Stuck { what: "the broker took nothing" });
            }
            wake_at = wake_at.min(self.progress_at + limits::WRITE_TIMEOUT);
        }
        if let Stage::Closing { until, .. } = self.stage {
            if now >= until {
                return Err(End::TimedOut);
            }
            wake_at = wake_at.min(until);
        }
        if self.stage == Stage::Open {
            wake_at = wake_at.min(self.check_life(bench, now)?);
            wake_at = bench.core.expire(now).map_or(wake_at, |expires| wake_at.min(expires));
        }
        Ok(wake_at)
    }

    fn check_life(&mut self, bench: &Workbench<'_>, now: Instant) -> Result<Instant, End> {
        match self.pinged_at {
            Some(pinged_at) if now >= pinged_at + limits::PING_TIMEOUT => Err(End::Silent),
            Some(pinged_at) => Ok(pinged_at + limits::PING_TIMEOUT),
            None if now >= self.heard_at + limits::PING_INTERVAL => {
                bench.outgoing.send_control(Record::Ping { number: PING_NUMBER, answer: false });
                self.pinged_at = Some(now);
                Ok(now + limits::PING_TIMEOUT)
            }
            None => Ok(self.heard_at + limits::PING_INTERVAL),
        }
    }

    // ---- out --------------------------------------------------------------------------------

    fn unsent(&mut self) -> usize {
        self.engine.output().len() - self.written
    }

    /// Writes the output and seals further batches while the socket takes them.
    fn write(&mut self, bench: &mut Workbench<'_>) -> Result<(), End> {
        for _ in 0..WRITE_TURN_BATCHES {
            self.flush()?;
            if self.unsent() > 0 {
                return Ok(());
            }
            match self.stage {
                Stage::Open => {}
                Stage::Closing { until, said: false } => {
                    // The broker may have closed its end first: then there is nobody to finish for.
                    let _ = self.socket.finish();
                    self.stage = Stage::Closing { until, said: true };
                    return Ok(());
                }
                _ => return Ok(()),
            }
            match bench.outgoing.take(&mut self.control, &mut self.messages) {
                Ok(()) => self.seal_batches()?,
                Err(Demand::Nothing) => return Ok(()),
                Err(Demand::Overflowed) => return Err(End::Overflowed),
                Err(Demand::Close) => {
                    self.seal_record(&Record::Goodbye { code: "closing".to_owned(), text: String::new() })?;
                    self.stage = Stage::Closing { until: Instant::now() + CLOSE_TIMEOUT, said: false };
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        while self.writable && self.unsent() > 0 {
            match self.socket.write(&self.engine.output()[self.written..]) {
                Ok(bytes) => {
                    self.written += bytes;
                    self.progress_at = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(End::Io(error)),
            }
        }
        if self.unsent() == 0 && self.written > 0 {
            let output = self.engine.output();
            output.clear();
            output.shrink_to(OUTPUT_BYTES_KEPT);
            self.written = 0;
        }
        Ok(())
    }

    fn seal_batches(&mut self) -> Result<(), End> {
        self.progress_at = Instant::now();
        let (control, messages) = (&self.control.bytes[..], &self.messages.bytes[..]);
        if control.len() + messages.len() <= limits::NATIVE_FRAME_BYTES_MAX {
            self.engine.send(&[control, messages], FrameFlags::LAST)?;
        } else {
            self.engine.send(&[control], FrameFlags::LAST)?;
            self.engine.send(&[messages], FrameFlags::LAST)?;
        }
        Ok(())
    }

    fn seal_record(&mut self, record: &Record) -> Result<(), End> {
        let mut batch = Vec::new();
        BatchWriter::default().put_control(record, &mut batch);
        self.progress_at = Instant::now();
        Ok(self.engine.send(&[&batch], FrameFlags::LAST)?)
    }

    // ---- in ---------------------------------------------------------------------------------

    fn read(&mut self, bench: &mut Workbench<'_>) -> Result<(), End> {
        let mut taken = 0;
        let mut ended = false;
        while self.readable && taken < limits::READ_TURN_BYTES {
            match self.socket.read(&mut bench.scratch) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(bytes) => {
                    self.input.extend_from_slice(&bench.scratch[..bytes]);
                    taken += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(End::Io(error)),
            }
        }
        if taken > 0 {
            self.heard_at = Instant::now();
            self.pinged_at = None;
        }
        while let Some(event) = self.engine.poll(&mut self.input)? {
            self.frame_since = None;
            self.on_event(event)?;
            if let Some(key) = self.new_broker_key.take() {
                bench.learn_broker_key(key);
            }
        }
        self.frame_since = match self.engine.missing(&self.input) {
            0 => None,
            _ => self.frame_since.or(Some(self.heard_at)),
        };
        self.hand_over(bench)?;
        match ended {
            true => Err(self.engine.end_of_stream(&self.input).map_or(End::PeerClosed, End::Zmtp)),
            false => Ok(()),
        }
    }

    fn on_event(&mut self, event: EngineEvent) -> Result<(), End> {
        match event {
            EngineEvent::Ready { .. } => {
                self.stage = Stage::Hello;
                self.seal_record(&Core::hello())
            }
            EngineEvent::PeerError { reason } => Err(End::PeerError { reason }),
            EngineEvent::Frame { body, command: true, .. } => self.on_command(&body),
            EngineEvent::Frame { more: true, .. } => {
                Err(protocol("a batch is one frame, and this one has more"))
            }
            EngineEvent::Frame { body, .. } => {
                self.reader.begin(body);
                while let Some(record) = self.reader.next_record()? {
                    match record {
                        Record::BrokerKey { key, .. } => {
                            self.new_broker_key = Some(PublicKey::from_bytes(key));
                        }
                        record => self.records.push(record),
                    }
                }
                Ok(())
            }
            // A server's events do not come to a client.
            _ => Ok(()),
        }
    }

    fn on_command(&mut self, body: &Bytes) -> Result<(), End> {
        match Command::parse(body)? {
            Command::Ping { context, .. } => {
                let pong = Command::Pong { context }.encode();
                Ok(self.engine.send(&[&pong], FrameFlags::COMMAND)?)
            }
            Command::Error { reason } => Err(End::PeerError { reason }),
            _ => Ok(()),
        }
    }

    /// Gives the records to the core, all of one turn at once.
    fn hand_over(&mut self, bench: &Workbench<'_>) -> Result<(), End> {
        let Some(first) = self.records.first() else { return Ok(()) };
        if self.stage == Stage::Hello {
            match first {
                Record::Hello { .. } => self.stage = Stage::Open,
                Record::Goodbye { .. } => {}
                _ => return Err(protocol("its first record is not hello")),
            }
        }
        bench.core.on_records(&mut self.records).map_err(End::Said)
    }
}

fn protocol(problem: &str) -> End {
    End::Said(SessionEnd::Protocol { problem: problem.to_owned() })
}
