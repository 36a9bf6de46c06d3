//! The state machine of one connection: bytes in, events and bytes out.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::command::{self, Refusal, encode_error_frame_onto};
use super::config::{ClientConfig, ServerConfig};
use super::curve::client::{self, AwaitReady, AwaitWelcome};
use super::curve::server::{self, AwaitDecision, AwaitInitiate, Secrets};
use super::curve::{HELLO_BYTES, INITIATE_BYTES, READY_BYTES, WELCOME_OR_ERROR_BYTES_MAX};
use super::draft::Draft;
use super::error::{Stage, ZmtpError};
use super::frame::{FrameFlags, Header};
use super::greeting::{self, GREETING_BYTES, Version};
use super::message_box::{MessageBox, OVERHEAD_BYTES};
use super::metadata::Metadata;
use crate::crypto::{KeyPair, PublicKey};

/// What the bytes of the peer mean.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineEvent {
    /// Server: the client has proven that it owns `key`. Nothing more is taken from the input until
    /// [`Engine::accept`] or [`Engine::refuse`] is called.
    Authenticate {
        /// Its long-term key.
        key: PublicKey,
        /// What it says about itself, authenticated by `key`.
        metadata: Metadata,
        /// Which of the server's keys it uses: 0 is the current one.
        server_key_index: usize,
        /// That key itself; the server may have changed its keys since the connection was made.
        server_key: PublicKey,
    },
    /// Client: the server has accepted; messages may be sent. A server is ready when it has called
    /// [`Engine::accept`] and gets no such event.
    Ready {
        /// What the server says about itself.
        metadata: Metadata,
    },
    /// One frame of an open session.
    Frame {
        /// Its content. Shares memory with the input buffer: copy what is kept for long.
        body: Bytes,
        /// Another frame of the same message follows.
        more: bool,
        /// To be read with [`Command::parse`](super::Command::parse).
        command: bool,
    },
    /// The peer sent ERROR before the session was open, and the engine is closed. It came in clear
    /// text and may be forged: a hint, no proof. See [`Refusal`].
    PeerError {
        /// Printable text.
        reason: String,
    },
}

/// One frame of an open session, opened where it lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedFrame<'a> {
    /// Its content.
    pub body: &'a [u8],
    /// Another frame of the same message follows.
    pub more: bool,
    /// To be read with [`Command::parse`](super::Command::parse).
    pub command: bool,
    /// How much of the input it took.
    pub bytes: usize,
}

/// One connection, either role.
///
/// - Never reads, writes or waits. Bytes from the peer never panic it, and never make it allocate
///   more than they are long themselves.
/// - The beginning of the greeting stands in [`Engine::output`] from the start.
/// - After an error of [`Engine::poll`], a refusal, or the peer's ERROR it is closed for good; what
///   is then in the output must still be written.
pub struct Engine {
    state: State,
    output: Vec<u8>,
    frame_bytes_max: usize,
    peer_version: Option<Version>,
    #[cfg(any(test, fuzzing))]
    recorded: Option<Secrets>,
    #[cfg(test)]
    vouched: Option<PublicKey>,
}

enum State {
    Greeting {
        role: Role,
        whole_sent: bool,
    },
    Hello(Arc<ServerConfig>, Secrets),
    /// A server that answers HELLO with this reason.
    Refusing(String),
    Initiate(Arc<ServerConfig>, AwaitInitiate),
    Decision(AwaitDecision),
    Welcome(Box<ClientConfig>, AwaitWelcome),
    Ready {
        metadata_bytes_max: usize,
        state: AwaitReady,
    },
    Session(MessageBox),
    Closed,
}

enum Role {
    Server(Arc<ServerConfig>),
    /// A server that will answer HELLO with this reason.
    Refusing(String),
    Client(Box<ClientConfig>),
}

impl Role {
    fn greeting(&self) -> [u8; GREETING_BYTES] {
        greeting::encode(!matches!(self, Self::Client(_)))
    }

    /// How many bytes of the peer's greeting must have come before ours goes on to the mechanism.
    ///
    /// libzmq closes as soon as it reads a mechanism that is not its own, and its own may then never
    /// leave its buffer. So the mechanism is held back until libzmq's is here or on its way, and a
    /// peer that speaks NULL can be named. The client waits for less, or two engines would wait for
    /// each other.
    fn waits_for_bytes(&self) -> usize {
        match self {
            Self::Server(_) | Self::Refusing(_) => greeting::MECHANISM_SHOWN_BYTES,
            Self::Client(_) => greeting::VERSION_SHOWN_BYTES,
        }
    }
}

/// What came of one step.
enum Step {
    Event(EngineEvent),
    Again,
    NeedInput,
}

impl Engine {
    /// The server's end of a new connection.
    pub fn server(config: Arc<ServerConfig>) -> Self {
        let frame_bytes_max = config.frame_bytes_max;
        Self::new(Role::Server(config), frame_bytes_max)
    }

    /// The client's end of a new connection.
    pub fn client(config: ClientConfig) -> Self {
        let frame_bytes_max = config.frame_bytes_max;
        Self::new(Role::Client(Box::new(config)), frame_bytes_max)
    }

    fn new(role: Role, frame_bytes_max: usize) -> Self {
        let output = role.greeting()[..greeting::VERSION_SHOWN_BYTES].to_vec();
        Self {
            state: State::Greeting { role, whole_sent: false },
            output,
            frame_bytes_max,
            peer_version: None,
            #[cfg(any(test, fuzzing))]
            recorded: None,
            #[cfg(test)]
            vouched: None,
        }
    }

    /// Takes what it can from the front of `input`. Call it after every read until it returns
    /// `None`, which means that more bytes are needed, or a decision after
    /// [`EngineEvent::Authenticate`]; while one is awaited, stop reading.
    ///
    /// What then remains in `input` is the beginning of one frame, at most [`Engine::missing`]
    /// short of its end.
    ///
    /// # Errors
    /// What the peer sent is not what this stage allows: the connection cannot go on. There may be an ERROR for it in the output.
    pub fn poll(&mut self, input: &mut BytesMut) -> Result<Option<EngineEvent>, ZmtpError> {
        loop {
            match self.step(input) {
                Ok(Step::Again) => {}
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::NeedInput) => return Ok(None),
                Err(error) => {
                    self.state = State::Closed;
                    return Err(error);
                }
            }
        }
    }

    /// Bytes to be written to the peer, in order. The caller writes them and removes what it wrote.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What is awaited.
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Greeting { .. } => Stage::Greeting,
            State::Hello(..) | State::Refusing(_) => Stage::Hello,
            State::Initiate(..) => Stage::Initiate,
            State::Decision(_) => Stage::Decision,
            State::Welcome(..) => Stage::Welcome,
            State::Ready { .. } => Stage::Ready,
            State::Session(_) => Stage::Session,
            State::Closed => Stage::Closed,
        }
    }

    /// Whether messages may be sent.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Session(_))
    }

    /// Changes the limit of this connection, for example when its metadata say what kind it is.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// The peer's ZMTP version, once its greeting has come.
    /// `None` before.
    pub fn peer_version(&self) -> Option<Version> {
        self.peer_version
    }

    /// How many bytes are at least missing from the frame that `input` begins with, after
    /// [`Engine::poll`] returned `None`. Zero means that none has begun, and silence is no fault.
    pub fn missing(&self, input: &[u8]) -> usize {
        if input.is_empty() {
            return 0;
        }
        match &self.state {
            State::Closed | State::Decision(_) => 0,
            State::Greeting { .. } => GREETING_BYTES.saturating_sub(input.len()),
            _ => match Header::parse(input, self.frame_limit(), self.stage()) {
                Ok(Some(header)) => (header.bytes + header.body_bytes).saturating_sub(input.len()),
                Ok(None) => 1,
                Err(_) => 0,
            },
        }
    }

    /// What it means that the peer has closed its side: `None` if it was between two frames of an
    /// open session, or after the end.
    pub fn end_of_stream(&self, input: &[u8]) -> Option<ZmtpError> {
        match self.stage() {
            Stage::Closed => None,
            Stage::Session if self.missing(input) == 0 => None,
            Stage::Session => Some(ZmtpError::ClosedInsideFrame),
            stage => Some(ZmtpError::ClosedDuringHandshake { stage }),
        }
    }

    /// Server: lets the client in, with our metadata, after [`EngineEvent::Authenticate`].
    ///
    /// # Panics
    /// If no decision is awaited, which is a mistake of the caller alone.
    pub fn accept(&mut self, metadata: &Metadata) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Decision(decision) => {
                self.state = State::Session(decision.accept(metadata, &mut self.output));
            }
            _ => panic!("accept was called although no decision was awaited"),
        }
    }

    /// Server: turns the client away after [`EngineEvent::Authenticate`]. The reason travels in
    /// clear text; libzmq understands those of [`Refusal::reason`] only.
    ///
    /// # Panics
    /// If no decision is awaited, which is a mistake of the caller alone.
    pub fn refuse(&mut self, reason: &str) {
        assert!(
            matches!(self.state, State::Decision(_)),
            "refuse was called although no decision was awaited"
        );
        encode_error_frame_onto(reason, &mut self.output);
        self.state = State::Closed;
    }

    /// Server: gives up at any time before READY, for example because there are too many
    /// connections.
    ///
    /// libzmq takes an ERROR only as the answer to HELLO or INITIATE. So before HELLO the reason is
    /// kept, without any work on keys: go on polling, and [`ZmtpError::Closed`] says that ERROR is in
    /// the output. After HELLO it is there at once.
    ///
    /// # Errors
    /// The session is open or over: nothing in clear may be said any more.
    pub fn send_error_before_ready(&mut self, reason: &str) -> Result<(), ZmtpError> {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Session(message_box) => {
                self.state = State::Session(message_box);
                return Err(ZmtpError::AlreadyReady);
            }
            State::Closed => return Err(ZmtpError::Closed),
            State::Greeting { role: Role::Server(_) | Role::Refusing(_), whole_sent } => {
                State::Greeting { role: Role::Refusing(reason.to_owned()), whole_sent }
            }
            State::Hello(..) | State::Refusing(_) => State::Refusing(reason.to_owned()),
            State::Initiate(..) | State::Decision(_) => {
                encode_error_frame_onto(reason, &mut self.output);
                State::Closed
            }
            State::Greeting { role: Role::Client(_), .. } | State::Welcome(..) | State::Ready { .. } => {
                State::Closed
            }
        };
        Ok(())
    }

    /// Seals one frame made of the concatenated `parts` into the output.
    ///
    /// # Errors
    /// [`ZmtpError::SendTooLong`], with nothing written; there is no open session; all nonces are used up.
    pub fn send(&mut self, parts: &[&[u8]], flags: FrameFlags) -> Result<(), ZmtpError> {
        let (message_box, output, limit) = self.sender(flags)?;
        within(limit, parts.iter().map(|part| part.len()).sum())?;
        message_box.seal_onto(flags, parts, output)
    }

    /// Seals one frame made of what `write` appends to the output; `false` if that is nothing, and then
    /// no frame is sent. Nothing is copied: a body is encrypted where it was written.
    ///
    /// # Errors
    /// As [`Engine::send`].
    pub fn send_written(
        &mut self,
        flags: FrameFlags,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<bool, ZmtpError> {
        let (message_box, output, limit) = self.sender(flags)?;
        message_box.seal_written(flags, limit, output, write)
    }

    /// Seals one frame of what `draft` has. If the output is empty, the frame becomes the output where it lies, and
    /// the draft gets the output's memory; otherwise it is copied. The draft is then empty; after an error it is as it was.
    ///
    /// # Errors
    /// As [`Engine::send`].
    pub fn send_draft(&mut self, draft: &mut Draft, flags: FrameFlags) -> Result<(), ZmtpError> {
        let (message_box, output, limit) = self.sender(flags)?;
        within(limit, draft.len())?;
        if output.is_empty() {
            message_box.seal_draft(flags, draft.tail())?;
            std::mem::swap(output, draft.tail());
        } else {
            message_box.seal_onto(flags, &[draft.body()], output)?;
        }
        draft.clear();
        Ok(())
    }

    /// What seals, where it goes, and bytes of the largest body.
    fn sender(&mut self, flags: FrameFlags) -> Result<(&mut MessageBox, &mut Vec<u8>, usize), ZmtpError> {
        debug_assert!(!(flags.more && flags.command), "a command is a single frame");
        let stage = self.stage();
        match &mut self.state {
            State::Session(message_box) => Ok((message_box, &mut self.output, self.frame_bytes_max)),
            State::Closed => Err(ZmtpError::Closed),
            _ => Err(ZmtpError::NotReady { stage }),
        }
    }

    /// Opens the frame that `input` begins with, where it lies; `None` if it has not come whole. The same
    /// as [`Engine::poll`] in an open session, without memory of its own.
    ///
    /// # Errors
    /// What the peer sent is not what its session allows: the connection cannot go on.
    pub fn open_frame<'a>(&mut self, input: &'a mut [u8]) -> Result<Option<OpenedFrame<'a>>, ZmtpError> {
        let opened = self.try_open(input);
        if opened.is_err() {
            self.state = State::Closed;
        }
        opened
    }

    fn try_open<'a>(&mut self, input: &'a mut [u8]) -> Result<Option<OpenedFrame<'a>>, ZmtpError> {
        let (stage, limit) = (self.stage(), self.frame_limit());
        let State::Session(message_box) = &mut self.state else { return Err(ZmtpError::NotReady { stage }) };
        let Some(header) = Header::parse(input, limit, stage)? else { return Ok(None) };
        let bytes = header.bytes + header.body_bytes;
        let Some(frame) = input.get_mut(header.bytes..bytes) else { return Ok(None) };
        let FrameFlags { more, command } = message_box.open_in_place(frame)?;
        Ok(Some(OpenedFrame { body: &frame[OVERHEAD_BYTES..], more, command, bytes }))
    }

    fn step(&mut self, input: &mut BytesMut) -> Result<Step, ZmtpError> {
        match &mut self.state {
            State::Closed => return Err(ZmtpError::Closed),
            State::Decision(_) => return Ok(Step::NeedInput),
            State::Greeting { role, whole_sent } => {
                let parsed = greeting::parse(input);
                let is_zmtp_3 = matches!(parsed, Ok(_) | Err(ZmtpError::MechanismMismatch { .. }));
                if is_zmtp_3 && !*whole_sent && input.len() >= role.waits_for_bytes() {
                    let rest = &role.greeting()[greeting::VERSION_SHOWN_BYTES..];
                    self.output.extend_from_slice(rest);
                    *whole_sent = true;
                }
                let Some(version) = parsed? else { return Ok(Step::NeedInput) };
                input.advance(GREETING_BYTES);
                self.peer_version = Some(version);
                return self.on_greeting();
            }
            _ => {}
        }
        let Some(header) = Header::parse(input, self.frame_limit(), self.stage())? else {
            return Ok(Step::NeedInput);
        };
        let frame_bytes = header.bytes + header.body_bytes;
        if input.len() < frame_bytes {
            return Ok(Step::NeedInput);
        }
        let mut body = input.split_to(frame_bytes);
        body.advance(header.bytes);
        if let State::Session(message_box) = &mut self.state {
            let (flags, body) = message_box.open(body)?;
            let FrameFlags { more, command } = flags;
            return Ok(Step::Event(EngineEvent::Frame { body, more, command }));
        }
        if !header.flags.command {
            let name = "a message".to_owned();
            return Err(ZmtpError::Unexpected { name, stage: self.stage() });
        }
        self.on_handshake(&mut body)
    }

    /// The longest body that may come now.
    pub(super) fn frame_limit(&self) -> usize {
        match &self.state {
            State::Hello(..) | State::Refusing(_) => HELLO_BYTES,
            State::Initiate(config, _) => INITIATE_BYTES.saturating_add(config.metadata_bytes_max),
            State::Welcome(..) => WELCOME_OR_ERROR_BYTES_MAX,
            State::Ready { metadata_bytes_max, .. } => {
                READY_BYTES.saturating_add(*metadata_bytes_max).max(WELCOME_OR_ERROR_BYTES_MAX)
            }
            State::Session(_) => self.frame_bytes_max.saturating_add(OVERHEAD_BYTES),
            State::Greeting { .. } | State::Decision(_) | State::Closed => 0,
        }
    }

    fn on_greeting(&mut self) -> Result<Step, ZmtpError> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Greeting { role: Role::Server(config), .. } => {
                let secrets = self.secrets();
                self.state = State::Hello(config, secrets);
            }
            State::Greeting { role: Role::Refusing(reason), .. } => {
                self.state = State::Refusing(reason);
            }
            State::Greeting { role: Role::Client(config), .. } => {
                let transient = KeyPair::generate();
                let state = client::start(transient, &config.server, &mut self.output)?;
                self.state = State::Welcome(config, state);
            }
            _ => unreachable!("called in the state Greeting only"),
        }
        Ok(Step::Again)
    }

    /// Drawn only now, so that a connection that never greets costs nothing.
    fn secrets(&mut self) -> Secrets {
        #[cfg(any(test, fuzzing))]
        if let Some(secrets) = self.recorded.take() {
            return secrets;
        }
        Secrets::generate()
    }

    fn on_handshake(&mut self, body: &mut [u8]) -> Result<Step, ZmtpError> {
        let stage = self.stage();
        let name = match stage {
            Stage::Hello => "HELLO",
            Stage::Initiate => "INITIATE",
            Stage::Welcome => "WELCOME",
            _ => "READY",
        };
        let data = match command::expect(name, body, stage)? {
            Ok(data) => data,
            Err(reason) => {
                self.state = State::Closed;
                return Ok(Step::Event(EngineEvent::PeerError { reason }));
            }
        };
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Hello(config, secrets) => {
                let state = server::on_hello(&config.keys, secrets, data, &mut self.output)
                    .inspect_err(|error| self.tell_refusal(error))?;
                self.state = State::Initiate(config, state);
                Ok(Step::Again)
            }
            State::Refusing(reason) => {
                encode_error_frame_onto(&reason, &mut self.output);
                Err(ZmtpError::Closed)
            }
            State::Initiate(config, state) => {
                let (decision, proof) = state
                    .on_initiate(data, config.metadata_bytes_max)
                    .inspect_err(|error| self.tell_refusal(error))?;
                self.state = State::Decision(decision);
                let server::Proof { key, metadata, server_key_index, server_key } = proof;
                let event = EngineEvent::Authenticate { key, metadata, server_key_index, server_key };
                Ok(Step::Event(event))
            }
            State::Welcome(config, state) => {
                let ClientConfig { keys, server, metadata, metadata_bytes_max, .. } = *config;
                #[cfg(test)]
                let server = self.vouched.unwrap_or(server);
                let state = state.on_welcome(data, &keys, &server, &metadata, &mut self.output)?;
                self.state = State::Ready { metadata_bytes_max, state };
                Ok(Step::Again)
            }
            State::Ready { metadata_bytes_max, state } => {
                let (message_box, metadata) = state.on_ready(data, metadata_bytes_max)?;
                self.state = State::Session(message_box);
                Ok(Step::Event(EngineEvent::Ready { metadata }))
            }
            State::Greeting { .. } | State::Decision(_) | State::Session(_) | State::Closed => {
                unreachable!("step handled these states")
            }
        }
    }

    /// Tells an honest but misconfigured client why, in the terms libzmq passes on to its user.
    /// Everything else is closed in silence.
    fn tell_refusal(&mut self, error: &ZmtpError) {
        let refusal = match error {
            ZmtpError::ServerKeyUnknown { .. } => Refusal::ServerKeyWrong,
            ZmtpError::VouchRefused { .. } | ZmtpError::Metadata(_) => Refusal::KeyRefused,
            _ => return,
        };
        encode_error_frame_onto(refusal.reason(), &mut self.output);
    }
}

fn within(limit: usize, bytes: usize) -> Result<(), ZmtpError> {
    if bytes > limit { Err(ZmtpError::SendTooLong { bytes, limit }) } else { Ok(()) }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("stage", &self.stage())
            .field("peer_version", &self.peer_version)
            .field("output_bytes", &self.output.len())
            .finish_non_exhaustive()
    }
}

#[cfg(any(test, fuzzing))]
impl Engine {
    /// A server that uses the secrets of a recorded connection.
    pub(super) fn server_replaying(config: Arc<ServerConfig>, secrets: Secrets) -> Self {
        Self { recorded: Some(secrets), ..Self::server(config) }
    }

    /// One end of a session whose handshake is over.
    pub(super) fn in_session(
        key: crate::crypto::BoxKey,
        side: super::message_box::Side,
        frame_bytes_max: usize,
    ) -> Self {
        let config = ServerConfig { frame_bytes_max, ..ServerConfig::new(Vec::new()) };
        let message_box = MessageBox::new(key, side, Default::default(), Default::default());
        let mut engine = Self::server(Arc::new(config));
        engine.state = State::Session(message_box);
        engine
    }
}

#[cfg(test)]
impl Engine {
    /// A client that says HELLO to one server key and vouches for another.
    pub(super) fn vouch_for(&mut self, server: PublicKey) {
        self.vouched = Some(server);
    }
}
