//! One session over a socket: handshake, hello, then batches both ways until it ends. It never waits.

use std::{
    fmt, io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use mio::{Registry, Token, event::Event};
use smallvec::SmallVec;

use super::{
    core::{Core, SessionEnd},
    intake::Intake,
    link::Link,
    outgoing::{Batch, Demand, Outgoing},
    readers::Readers,
    socket::Socket,
};
use crate::{
    crypto::PublicKey,
    limits,
    native::{BatchReader, BatchWriter, Received, Record, RecordError},
    zmtp::{Command, Engine, EngineEvent, FrameFlags, OpenedFrame, ZmtpError},
};

/// The socket's events.
pub(super) const SOCKET: Token = Token(0);
/// The waker's events.
pub(super) const WAKER: Token = Token(1);

/// How long the broker may take to hear a goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// An output buffer above this is not kept when it is empty.
const OUTPUT_BYTES_KEPT: usize = 4 * limits::WRITE_BUFFER_BYTES;
/// The number of pings that only look for a sign of life.
const PING_NUMBER: u64 = u64::MAX;

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

impl From<SessionEnd> for End {
    fn from(end: SessionEnd) -> Self {
        Self::Said(end)
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

/// A frame that was opened.
struct Opened {
    /// Where its content is.
    body: Range<usize>,
    more: bool,
    command: bool,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All there was. The duty is let go.
    All,
    /// The socket takes no more; the client's own thread will hear when it does. The duty is blocked.
    Blocked,
    /// As much as one turn may. The duty stays with the caller.
    More,
    /// All there was, and the goodbye is due. The duty stays with the caller.
    Close,
}

/// One session.
pub(super) struct Session {
    socket: Arc<Socket>,
    engine: Engine,
    stage: Stage,
    /// Why it cannot go on, said by a thread that is not the client's own.
    end: Option<End>,
    /// Bytes of the engine's output that are written.
    written: usize,
    /// What has come of the handshake and is not taken.
    handshake: BytesMut,
    intake: Intake,
    reader: BatchReader,
    /// A key of the broker that it has told, until the client's own thread takes it.
    new_broker_key: Option<PublicKey>,
    control: Batch,
    messages: Batch,
    readable: bool,
    /// The peer has closed its side: the socket is read until it says so.
    read_closed: bool,
    writable: bool,
    /// What the client's own thread is woken for: reading, and writing.
    interest: (bool, bool),
    pub(super) readers: Readers,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    frame_since: Option<Instant>,
    progress_at: Instant,
}

impl Session {
    pub(super) fn new(socket: Socket, engine: Engine) -> Self {
        let now = Instant::now();
        Self {
            socket: Arc::new(socket),
            engine,
            stage: Stage::Connecting,
            end: None,
            written: 0,
            handshake: BytesMut::new(),
            intake: Intake::default(),
            reader: BatchReader::default(),
            new_broker_key: None,
            control: Batch::default(),
            messages: Batch::default(),
            readable: false,
            read_closed: false,
            writable: false,
            interest: (true, true),
            readers: Readers::default(),
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

    /// Whether the broker has said hello.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. })
    }

    /// Notes that it cannot go on. The first reason stays.
    pub(super) fn set_end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    pub(super) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    pub(super) fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    pub(super) fn has_new_broker_key(&self) -> bool {
        self.new_broker_key.is_some()
    }

    pub(super) fn take_new_broker_key(&mut self) -> Option<PublicKey> {
        self.new_broker_key.take()
    }

    pub(super) fn socket(&self) -> Arc<Socket> {
        Arc::clone(&self.socket)
    }

    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    /// Whether the client's own thread has something to read. A socket that a waiting thread reads tells it anew.
    pub(super) fn has_input(&self) -> bool {
        self.readable && self.interest.0
    }

    /// Whether something is sealed and not written.
    pub(super) fn has_output(&mut self) -> bool {
        self.unsent() > 0
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Takes note of an event of the socket.
    pub(super) fn on_socket_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
    }

    /// Has the client's own thread be woken for what comes, which tells it of what is there, or not.
    pub(super) fn set_read_by_thread(&mut self, registry: &Registry, reads: bool) {
        if self.interest.0 != reads {
            self.readable = false;
            self.set_interest(registry, (reads, self.interest.1));
        }
    }

    fn set_interest(&mut self, registry: &Registry, interest: (bool, bool)) {
        if self.interest == interest {
            return;
        }
        let before = std::mem::replace(&mut self.interest, interest);
        if let Err(error) = self.socket.change_interest(registry, SOCKET, before, interest) {
            self.set_end(End::Io(error));
        }
    }

    /// One step of connecting, handshake and hello, after an event.
    pub(super) fn advance(&mut self, core: &Core) -> Result<(), End> {
        if self.stage == Stage::Connecting && self.writable {
            match self.socket.connected().map_err(End::Io)? {
                true => self.stage = Stage::Handshake,
                false => self.writable = false,
            }
        }
        if self.stage == Stage::Connecting {
            return Ok(());
        }
        if self.readable {
            self.read(core)?;
        }
        self.flush()
    }

    /// Notices what should have happened by now. Returns when to look again.
    pub(super) fn check_clocks(
        &mut self,
        core: &Core,
        outgoing: &Outgoing,
        now: Instant,
    ) -> Result<Instant, End> {
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
            wake_at = wake_at.min(self.check_life(outgoing, now)?);
            wake_at = core.expire(now).map_or(wake_at, |expires| wake_at.min(expires));
        }
        Ok(wake_at)
    }

    fn check_life(&mut self, outgoing: &Outgoing, now: Instant) -> Result<Instant, End> {
        match self.pinged_at {
            Some(pinged_at) if now >= pinged_at + limits::PING_TIMEOUT => Err(End::Silent),
            Some(pinged_at) => Ok(pinged_at + limits::PING_TIMEOUT),
            None if now >= self.heard_at + limits::PING_INTERVAL => {
                outgoing.send_control(Record::Ping { number: PING_NUMBER, answer: false });
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

    /// Writes the output and seals further batches, at most so many, while the socket takes them. The
    /// caller has the duty to write; the result says what became of it.
    pub(super) fn write(
        &mut self,
        outgoing: &Outgoing,
        registry: &Registry,
        batches_max: usize,
    ) -> Result<Written, End> {
        for _ in 0..batches_max {
            if !self.flush_or_block(outgoing, registry)? {
                return Ok(Written::Blocked);
            }
            match outgoing.take(&mut self.control, &mut self.messages) {
                Ok(()) => self.seal_batches()?,
                Err(Demand::Nothing) => return Ok(Written::All),
                Err(Demand::Overflowed) => return Err(End::Overflowed),
                Err(Demand::Close) => return Ok(Written::Close),
            }
        }
        match self.flush_or_block(outgoing, registry)? {
            true => Ok(Written::More),
            false => Ok(Written::Blocked),
        }
    }

    /// Says goodbye behind all that was written.
    pub(super) fn begin_closing(&mut self) -> Result<(), End> {
        self.seal_record(&Record::Goodbye { code: "closing".to_owned(), text: String::new() })?;
        self.stage = Stage::Closing { until: Instant::now() + CLOSE_TIMEOUT, said: false };
        Ok(())
    }

    /// Writes the goodbye, and then says that nothing follows.
    pub(super) fn go_on_closing(&mut self, registry: &Registry) -> Result<(), End> {
        let Stage::Closing { until, said: false } = self.stage else { return Ok(()) };
        self.flush()?;
        let is_written = self.unsent() == 0;
        self.set_interest(registry, (self.interest.0, !is_written));
        if is_written {
            // The broker may have closed its end first: then there is nobody to finish for.
            let _ = self.socket.finish();
            self.stage = Stage::Closing { until, said: true };
        }
        Ok(())
    }

    /// Whether the socket has taken all. If not, the duty is blocked until it tells the client's own thread.
    fn flush_or_block(&mut self, outgoing: &Outgoing, registry: &Registry) -> Result<bool, End> {
        // Whoever comes here while it is blocked tries.
        self.writable = true;
        self.flush()?;
        let is_written = self.unsent() == 0;
        if !is_written {
            outgoing.block();
        }
        self.set_interest(registry, (self.interest.0, !is_written));
        Ok(is_written)
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
        let (control, messages) = (&mut self.control.records, &mut self.messages.records);
        if control.is_empty() {
            return Ok(self.engine.send_draft(messages, FrameFlags::LAST)?);
        }
        if messages.is_empty() || control.len() + messages.len() > limits::NATIVE_FRAME_BYTES_MAX {
            self.engine.send_draft(control, FrameFlags::LAST)?;
        }
        if !messages.is_empty() {
            self.engine.send(&[control.body(), messages.body()], FrameFlags::LAST)?;
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

    /// Reads what is there, up to a limit, and hands it over. Returns the number of records.
    pub(super) fn read(&mut self, core: &Core) -> Result<usize, End> {
        let mut taken = 0;
        let mut ended = false;
        while self.readable && taken < limits::READ_TURN_BYTES {
            let room = self.intake.room();
            match self.socket.read(room) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(bytes) => {
                    // It gave all it had, and will tell of more.
                    self.readable = bytes == room.len() || self.read_closed;
                    self.intake.came(bytes);
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
        if !self.engine.is_ready() {
            self.shake_hands()?;
        }
        let records = match self.engine.is_ready() {
            true => self.take_frames(core)?,
            false => 0,
        };
        let untaken = match self.engine.is_ready() {
            true => self.intake.untaken(),
            false => &mut self.handshake[..],
        };
        self.frame_since = match self.engine.missing(untaken) {
            0 => None,
            _ => self.frame_since.or(Some(self.heard_at)),
        };
        match ended {
            true => Err(self.engine.end_of_stream(untaken).map_or(End::PeerClosed, End::Zmtp)),
            false => Ok(records),
        }
    }

    /// Gives what has come to the handshake, and takes back what stands behind its end.
    fn shake_hands(&mut self) -> Result<(), End> {
        self.handshake.extend_from_slice(self.intake.untaken());
        self.intake = Intake::default();
        while !self.engine.is_ready()
            && let Some(event) = self.engine.poll(&mut self.handshake)?
        {
            self.frame_since = None;
            match event {
                EngineEvent::Ready { .. } => {
                    self.stage = Stage::Hello;
                    self.seal_record(&Core::hello())?;
                }
                EngineEvent::PeerError { reason } => return Err(End::PeerError { reason }),
                // Frames come in a session, and a server's events do not come to a client.
                EngineEvent::Frame { .. } | EngineEvent::Authenticate { .. } => {}
            }
        }
        if self.engine.is_ready() {
            let behind = std::mem::take(&mut self.handshake);
            // No more than one read has brought.
            self.intake.room()[..behind.len()].copy_from_slice(&behind);
            self.intake.came(behind.len());
        }
        Ok(())
    }

    /// Opens the whole frames that have come and hands their records over. Returns the number of records.
    fn take_frames(&mut self, core: &Core) -> Result<usize, End> {
        let mut opened: SmallVec<[Opened; 8]> = SmallVec::new();
        let mut end = 0;
        let broken = loop {
            match self.engine.open_frame(&mut self.intake.untaken()[end..]) {
                Ok(None) => break None,
                Err(error) => break Some(error),
                Ok(Some(OpenedFrame { body, more, command, bytes })) => {
                    let body = end + bytes - body.len()..end + bytes;
                    opened.push(Opened { body, more, command });
                    end += bytes;
                }
            }
        };
        let mut records = 0;
        if end > 0 {
            self.frame_since = None;
            let taken = self.intake.take(end);
            for Opened { body, more, command } in &opened {
                let body = taken.slice(body.clone());
                match (command, more) {
                    (true, _) => self.on_command(&body)?,
                    (false, true) => return Err(protocol("a batch is one frame, and this one has more")),
                    (false, false) => records += self.on_batch(core, body)?,
                }
            }
        }
        match broken {
            Some(error) => Err(error.into()),
            None => Ok(records),
        }
    }

    fn on_batch(&mut self, core: &Core, batch: Bytes) -> Result<usize, End> {
        self.reader.begin(batch);
        let (stage, new_broker_key) = (&mut self.stage, &mut self.new_broker_key);
        core.on_batch(&mut self.reader, |received| {
            match received {
                Received::Record(Record::Hello { .. }) if *stage == Stage::Hello => *stage = Stage::Open,
                Received::Record(Record::Goodbye { .. }) => {}
                _ if *stage == Stage::Hello => return Err(protocol("its first record is not hello")),
                Received::Record(Record::BrokerKey { key, .. }) => {
                    *new_broker_key = Some(PublicKey::from_bytes(*key));
                }
                _ => {}
            }
            Ok(())
        })
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
}

fn protocol(problem: &str) -> End {
    End::Said(SessionEnd::Protocol { problem: problem.to_owned() })
}
