//! The broker's one thread: waits for sockets and commands, reads, routes, writes.
//!
//! Order of a turn: commands, new connections, reads (bounded per connection), then everything that
//! has something to send is written, and sessions that must end are ended. Nothing waits in between.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token};

use super::{
    BrokerConfig, BrokerError,
    command::Command,
    connection::{Connection, Phase, ReadOutcome, Speech, Stream},
    hub::{Ending, Hub, SessionId, SessionInfo, SessionKind},
    listener::Listener,
    refusals::RefusalEvent,
    stock::Stock,
};
use crate::{
    crypto::PublicKey,
    endpoint::Endpoint,
    envelope,
    keys::{KeyError, Registry},
    limits,
    local::{CommandSource, RecordSink},
    native::{self, BatchReader, BatchWriter, Record},
    peer::PeerName,
    zmtp::{
        self, Engine, EngineEvent, FrameFlags, Metadata, Refusal, ServerConfig, SocketType, Stage,
        X_INTERLOCK, ZmtpError,
    },
};

/// The token of the command queue's waker.
pub(super) const WAKER: Token = Token(usize::MAX);
/// Tokens of listeners count down from here, those of connections up from zero.
const LISTENERS: usize = usize::MAX - 16;
/// Commands taken in one turn, so that attached clients cannot starve sockets.
const COMMANDS_PER_TURN: usize = 4096;
/// Records handed to an attached client at once.
const LOCAL_BATCH: usize = 1024;
/// How often deadlines, pings and the registry are looked at while something is under way, and while nothing is.
const TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_millis(500);

/// Binds all endpoints and registers them.
pub(super) fn bind_all(endpoints: &[Endpoint], poll: &Poll) -> Result<Vec<Listener>, BrokerError> {
    let mut listeners = Vec::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let mut listener = Listener::bind(endpoint)?;
        poll.registry()
            .register(listener.source(), Token(LISTENERS + index), Interest::READABLE)
            .map_err(BrokerError::Thread)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Which connection or sink a session has.
enum End {
    Socket(usize),
    Sink(Arc<dyn RecordSink>),
}

pub(super) struct Reactor {
    poll: Poll,
    commands: CommandSource,
    listeners: Vec<Listener>,
    server: Arc<ServerConfig>,
    registry: Registry,
    registry_watch: Option<RegistryWatch>,
    hub: Hub,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    half_open: usize,
    ends: HashMap<SessionId, End>,
    /// Connections with bytes to read, in the order in which they got them.
    readable: VecDeque<usize>,
    /// Listeners that had to stop accepting at a limit.
    accept_paused: bool,
    scratch: Vec<u8>,
    stop_at: Option<Instant>,
    last_tick: Instant,
}

impl Reactor {
    pub(super) fn new(
        config: BrokerConfig,
        poll: Poll,
        commands: CommandSource,
        listeners: Vec<Listener>,
    ) -> Self {
        let broker: PeerName = "broker".parse().expect("`broker` is a legal peer name");
        Self {
            poll,
            commands,
            listeners,
            server: Arc::new(ServerConfig::new(config.keys)),
            registry: config.registry,
            registry_watch: config.registry_path.map(RegistryWatch::new),
            hub: Hub::new(broker, now_ms()),
            connections: Vec::new(),
            free: Vec::new(),
            half_open: 0,
            ends: HashMap::new(),
            readable: VecDeque::new(),
            accept_paused: false,
            scratch: Vec::with_capacity(limits::BATCH_BYTES + 4096),
            stop_at: None,
            last_tick: Instant::now(),
        }
    }

    /// Runs until it is told to stop and everything is sent, or the grace is over. Returns why it ended.
    pub(super) fn run(mut self) -> String {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(error) = self.wait(&mut events) {
                return format!("the broker cannot wait for its sockets: {error}");
            }
            let now = Instant::now();
            self.hub.set_now(now_ms());
            for event in &events {
                self.on_event(
                    event.token(),
                    event.is_readable() || event.is_read_closed(),
                    event.is_writable(),
                );
            }
            self.take_commands(now);
            self.accept_if_room(now);
            self.read_turn(now);
            if now.duration_since(self.last_tick) >= TICK {
                self.tick(now);
            }
            self.settle(now);
            if let Some(stop_at) = self.stop_at
                && (now >= stop_at || self.is_drained())
            {
                self.say_goodbye(now);
                return "stopped".to_owned();
            }
        }
    }

    /// Waits for sockets, commands or the next tick. Interrupted waits are no error.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let busy = self.stop_at.is_some() || self.half_open > 0 || self.hub.requests_in_flight() > 0;
        let mut timeout = if busy { TICK } else { IDLE_TICK };
        if !self.readable.is_empty() || !self.commands.about_to_sleep() {
            timeout = Duration::ZERO;
        }
        let waited = self.poll.poll(events, Some(timeout));
        self.commands.awake();
        match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    fn on_event(&mut self, token: Token, readable: bool, writable: bool) {
        if token == WAKER {
            return;
        }
        if token.0 >= LISTENERS {
            self.accept_paused = true;
            return;
        }
        let Some(Some(connection)) = self.connections.get_mut(token.0) else { return };
        if readable {
            connection.is_readable = true;
            list(&mut self.readable, token.0, connection);
        }
        if writable {
            self.write(token.0, Instant::now());
        }
    }

    // ---- commands ----------------------------------------------------------------------------

    fn take_commands(&mut self, now: Instant) {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.next() {
                Some(Command::Record(session, record)) => self.hub.record(session, record),
                Some(Command::Attach { peer, sink, answer }) => {
                    // The caller may have given up; then the session ends with its sink.
                    let _ = answer.send(self.attach(peer, sink));
                }
                Some(Command::Detach(session)) => self.close_session(session, "closing", "", now),
                Some(Command::CloseKey(key)) => self.close_key(&key, now),
                Some(Command::Stop { grace }) => {
                    self.stop_at.get_or_insert(now + grace);
                }
                None => return,
            }
        }
    }

    fn attach(&mut self, peer: PeerName, sink: Arc<dyn RecordSink>) -> Result<SessionId, BrokerError> {
        let refuse =
            |reason: &str| BrokerError::NotAuthorised { peer: peer.clone(), reason: reason.to_owned() };
        let registered = self.registry.peer(&peer).ok_or_else(|| refuse("it is not in the registry"))?;
        if registered.permissions.is_empty() {
            return Err(refuse("it has no permission at all"));
        }
        let permissions = Arc::clone(&registered.permissions);
        let info = SessionInfo {
            peer,
            key: None,
            kind: SessionKind::Local,
            address: "in process".to_owned(),
            permissions,
        };
        let session = self.hub.open(info);
        self.ends.insert(session, End::Sink(sink));
        Ok(session)
    }

    fn close_key(&mut self, key: &PublicKey, now: Instant) {
        for session in self.hub.sessions_of_key(key) {
            self.close_session(session, "revoked", "the key is no longer valid", now);
        }
    }

    // ---- accepting ------------------------------------------------------------------------------

    /// Accepts while there is room. A listener that was not emptied is tried again every turn.
    fn accept_if_room(&mut self, now: Instant) {
        if !self.accept_paused || self.stop_at.is_some() {
            return;
        }
        self.accept_paused = false;
        for index in 0..self.listeners.len() {
            loop {
                if self.half_open >= limits::HALF_OPEN_MAX || self.occupied() >= limits::SESSIONS_MAX {
                    self.accept_paused = true;
                    break;
                }
                match self.listeners[index].accept() {
                    Ok((stream, address)) => self.add_connection(stream, address, now),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // A connection that died in the queue; the next one may be fine.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::error!(%error, "cannot accept connections; trying again");
                        self.accept_paused = true;
                        break;
                    }
                }
            }
        }
    }

    fn occupied(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    fn add_connection(&mut self, stream: Stream, address: String, now: Instant) {
        let engine = Engine::server(Arc::clone(&self.server));
        let mut connection = Connection::new(stream, address, engine, now);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(connection.stream.source(), Token(slot), interest) {
            tracing::error!(%error, address = %connection.address, "cannot watch a new connection; it is closed");
            self.free.push(slot);
            return;
        }
        self.half_open += 1;
        self.connections[slot] = Some(connection);
        self.write(slot, now);
    }

    // ---- reading -----------------------------------------------------------------------------------

    /// Reads from every readable connection once around, each for at most [`limits::READ_TURN_BYTES`].
    fn read_turn(&mut self, now: Instant) {
        for _ in 0..self.readable.len() {
            let Some(slot) = self.readable.pop_front() else { return };
            let Some(Some(connection)) = self.connections.get_mut(slot) else { continue };
            connection.is_listed = false;
            self.read_connection(slot, now);
            if let Some(Some(connection)) = self.connections.get_mut(slot)
                && connection.is_readable
            {
                let held = match &connection.phase {
                    Phase::Open { session, speech: Speech::Stock(_) } => self.hub.is_held(*session),
                    _ => false,
                };
                // A held stock publisher is read again when it is released: `tick` lists it.
                if !held {
                    list(&mut self.readable, slot, connection);
                }
            }
        }
    }

    fn read_connection(&mut self, slot: usize, now: Instant) {
        let mut budget = limits::READ_TURN_BYTES as isize;
        while budget > 0 {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            if matches!(connection.phase, Phase::Closing) {
                return;
            }
            let before = connection.input.len();
            match connection.read(now) {
                Ok(ReadOutcome::Some) => {
                    budget -= (connection.input.len() - before) as isize;
                    self.take_input(slot, now);
                }
                Ok(ReadOutcome::Blocked) => {
                    connection.is_readable = false;
                    return;
                }
                Ok(ReadOutcome::Ended) => return self.on_end_of_stream(slot, now),
                Err(error) => return self.lose(slot, "lost", &error.to_string(), now),
            }
        }
    }

    fn take_input(&mut self, slot: usize, now: Instant) {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            match connection.engine.poll(&mut connection.input) {
                Ok(Some(EngineEvent::Authenticate { key, metadata, .. })) => {
                    self.authenticate(slot, key, &metadata, now)
                }
                Ok(Some(EngineEvent::Frame { body, more, command })) => {
                    self.on_frame(slot, body, more, command, now)
                }
                Ok(Some(EngineEvent::PeerError { reason })) => {
                    return self.refuse(
                        slot,
                        "peer_error",
                        &format!("the peer gave up: `{reason}`"),
                        None,
                        now,
                    );
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    connection.note_frame(now);
                    if connection.unwritten() > 0 {
                        self.write(slot, now);
                    }
                    return;
                }
                Err(error) => return self.on_zmtp_error(slot, &error, now),
            }
        }
    }

    fn on_end_of_stream(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let input = std::mem::take(&mut connection.input);
        let problem = connection.engine.end_of_stream(&input);
        match (&connection.phase, problem) {
            (Phase::Handshaking, Some(error)) => {
                self.refuse(slot, "closed_in_handshake", &error.to_string(), None, now);
                self.drop_connection(slot);
            }
            (_, Some(error)) => self.lose(slot, "lost", &error.to_string(), now),
            (_, None) => self.lose(slot, "closed", "the peer closed the connection", now),
        }
    }

    fn on_zmtp_error(&mut self, slot: usize, error: &ZmtpError, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if matches!(connection.phase, Phase::Open { .. }) {
            return self.lose(slot, "protocol", &error.to_string(), now);
        }
        let code = match error {
            ZmtpError::NotZmtp { .. } => "not_zmtp",
            ZmtpError::VersionTooOld { .. } => "version",
            ZmtpError::MechanismMismatch { .. } => "not_curve",
            ZmtpError::ServerKeyUnknown { .. } => "wrong_server_key",
            ZmtpError::VouchRefused { .. } => "bad_vouch",
            _ => "malformed",
        };
        self.refuse(slot, code, &error.to_string(), None, now);
    }

    // ---- the handshake's decision --------------------------------------------------------------------

    fn authenticate(&mut self, slot: usize, key: PublicKey, metadata: &Metadata, now: Instant) {
        // A key that was enrolled a moment ago must not be refused: stock clients do not come back.
        self.reload_registry();
        let shown = Some((key, self.registry.peer_of(&key)));
        let (kind, single_reply) = match session_kind(metadata) {
            Ok(kind) => kind,
            Err(text) => {
                self.with_engine(slot, |engine| engine.refuse(Refusal::KeyRefused.reason()));
                return self.refuse(slot, "socket_type", &text, shown, now);
            }
        };
        let (peer, permissions) = match self.registry.authenticate(&key) {
            Ok(found) => found,
            Err(refusal) => {
                self.with_engine(slot, |engine| engine.refuse(Refusal::KeyRefused.reason()));
                return self.refuse(slot, refusal.code(), &refusal.to_string(), shown, now);
            }
        };
        let socket_type =
            metadata.socket_type().map_or(SocketType::Router, |socket_type| socket_type.complement());
        let mut ours = Metadata::new(&socket_type);
        if kind == SessionKind::Native
            && let Ok(marked) = ours.clone().with(X_INTERLOCK, native::VERSION_MAJOR.to_string())
        {
            ours = marked;
        }
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        connection.engine.accept(&ours);
        self.half_open -= 1;
        let address = connection.address.clone();
        let session = self.hub.open(SessionInfo { peer, key: Some(key), kind, address, permissions });
        self.ends.insert(session, End::Socket(slot));
        let speech = if kind == SessionKind::Native {
            connection.engine.set_frame_bytes_max(limits::NATIVE_FRAME_BYTES_MAX);
            Speech::Native { reader: Box::default(), writer: BatchWriter::default() }
        } else {
            Speech::Stock(Stock::new(kind, single_reply))
        };
        if kind == SessionKind::StockPublisher {
            let subscribed = subscribe_to_everything(&mut connection.engine);
            debug_assert!(subscribed.is_ok(), "an accepted session takes a SUBSCRIBE");
        }
        connection.phase = Phase::Open { session, speech };
        self.write(slot, now);
    }

    fn with_engine(&mut self, slot: usize, act: impl FnOnce(&mut Engine)) {
        if let Some(Some(connection)) = self.connections.get_mut(slot) {
            act(&mut connection.engine);
        }
    }

    /// Ends a connection that never became a session, and says so.
    fn refuse(
        &mut self,
        slot: usize,
        code: &str,
        text: &str,
        shown: Option<(PublicKey, Option<PeerName>)>,
        now: Instant,
    ) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let (key, peer) = shown.map_or((None, None), |(key, peer)| (Some(key.to_string()), peer));
        let address = connection.address.clone();
        tracing::warn!(%address, code, peer = peer.as_ref().map(PeerName::as_str), "connection refused: {text}");
        let (code, text, peer) = (code.to_owned(), text.to_owned(), peer.map(|peer| peer.to_string()));
        self.hub.refused(RefusalEvent { at_ms: now_ms(), address, code, text, key, peer });
        self.finish(slot, now);
    }

    // ---- frames -----------------------------------------------------------------------------------------

    fn on_frame(&mut self, slot: usize, body: bytes::Bytes, more: bool, command: bool, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let Phase::Open { session, speech } = &mut connection.phase else { return };
        let session = *session;
        if command {
            return self.on_command(slot, session, &body, now);
        }
        let problem = match speech {
            Speech::Native { reader, .. } => take_batch(&mut self.hub, session, reader, body).err(),
            Speech::Stock(stock) => {
                stock.frame(&mut self.hub, session, body, more).err().map(|error| error.to_string())
            }
        };
        if let Some(problem) = problem {
            self.close_session(session, "protocol", &problem, now);
        }
    }

    fn on_command(&mut self, slot: usize, session: SessionId, body: &bytes::Bytes, now: Instant) {
        let command = match zmtp::Command::parse(body) {
            Ok(command) => command,
            Err(error) => return self.lose(slot, "protocol", &error.to_string(), now),
        };
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match command {
            zmtp::Command::Ping { context, .. } => {
                let pong = zmtp::Command::Pong { context }.encode();
                if connection.engine.send(&[&pong], FrameFlags::COMMAND).is_ok() {
                    self.write(slot, now);
                }
            }
            zmtp::Command::Error { reason } => self.lose(slot, "peer_error", &reason, now),
            other => {
                if let Phase::Open { speech: Speech::Stock(stock), .. } = &mut connection.phase {
                    stock.command(&mut self.hub, session, other);
                }
            }
        }
    }

    // ---- writing ------------------------------------------------------------------------------------------

    /// Writes for every session that has something to send, and ends those that must end, until
    /// neither is left.
    fn settle(&mut self, now: Instant) {
        loop {
            let dirty = self.hub.take_dirty();
            let ending = self.hub.take_ending();
            if dirty.is_empty() && ending.is_empty() {
                return;
            }
            for session in dirty {
                match self.ends.get(&session) {
                    Some(End::Socket(slot)) => self.write(*slot, now),
                    Some(End::Sink(sink)) => deliver_locally(&mut self.hub, session, &Arc::clone(sink)),
                    None => {}
                }
            }
            for (session, Ending { code, text }) in ending {
                self.close_session(session, code, &text, now);
            }
        }
    }

    /// Seals and writes until the kernel takes no more or nothing is left.
    fn write(&mut self, slot: usize, now: Instant) {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            if let Phase::Open { session, speech } = &mut connection.phase {
                let session = *session;
                while connection.engine.output().len() < limits::WRITE_BUFFER_BYTES {
                    let sealed = match speech {
                        Speech::Native { writer, .. } => seal_batch(
                            &mut self.hub,
                            session,
                            writer,
                            &mut self.scratch,
                            &mut connection.engine,
                        ),
                        Speech::Stock(stock) => seal_stock(
                            &mut self.hub,
                            session,
                            stock,
                            &mut connection.engine,
                            &mut connection.unwritten_deliveries,
                        ),
                    };
                    match sealed {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) => return self.lose(slot, "protocol", &error.to_string(), now),
                    }
                }
            }
            match connection.write(now) {
                Ok(false) => return,
                Ok(true) => {
                    let delivered = std::mem::take(&mut connection.unwritten_deliveries);
                    match &connection.phase {
                        Phase::Closing => return self.drop_connection(slot),
                        Phase::Handshaking => return,
                        Phase::Open { session, .. } => {
                            let session = *session;
                            if delivered > 0 {
                                self.hub.stock_delivered(session, delivered);
                            }
                            if !self.hub.has_output(session) && !fragments_wait(connection) {
                                connection.release_idle_output();
                                return;
                            }
                        }
                    }
                }
                Err(error) => return self.lose(slot, "lost", &error.to_string(), now),
            }
        }
    }

    // ---- ending -----------------------------------------------------------------------------------------------

    /// Ends a session on our word: the peer is told why, as far as its protocol can say it.
    fn close_session(&mut self, session: SessionId, code: &str, text: &str, now: Instant) {
        let Some(end) = self.ends.remove(&session) else { return };
        let slot = match end {
            End::Sink(sink) => {
                self.hub.close(session);
                return sink.on_closed(code, text);
            }
            End::Socket(slot) => slot,
        };
        tracing::info!(
            peer = self.hub.info(session).map(|info| info.peer.as_str()),
            code,
            "session ended: {text}"
        );
        self.hub.close(session);
        if let Some(Some(connection)) = self.connections.get_mut(slot) {
            if let Phase::Open { speech: Speech::Native { writer, .. }, .. } = &mut connection.phase {
                let mut batch = Vec::new();
                let goodbye = Record::Goodbye { code: code.to_owned(), text: text.to_owned() };
                writer.put_control(&goodbye, &mut batch);
                // A session that cannot take it is closed all the same.
                let _ = connection.engine.send(&[&batch], FrameFlags::LAST);
            }
            self.finish(slot, now);
        }
    }

    /// The connection is gone, or breaks its protocol: its session ends without a word to the peer.
    fn lose(&mut self, slot: usize, code: &str, text: &str, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match &connection.phase {
            Phase::Open { session, .. } => {
                let session = *session;
                let peer = self.hub.info(session).map(|info| info.peer.clone());
                tracing::debug!(peer = peer.as_ref().map(PeerName::as_str), code, "session ended: {text}");
                self.ends.remove(&session);
                self.hub.close(session);
            }
            Phase::Handshaking => self.refuse(slot, code, text, None, now),
            Phase::Closing => {}
        }
        self.drop_connection(slot);
    }

    /// Lets the last bytes out, then closes the socket.
    fn finish(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if matches!(connection.phase, Phase::Handshaking) {
            self.half_open -= 1;
        }
        connection.phase = Phase::Closing;
        connection.opened = now;
        self.write(slot, now);
    }

    fn drop_connection(&mut self, slot: usize) {
        let Some(mut connection) = self.connections[slot].take() else { return };
        if matches!(connection.phase, Phase::Handshaking) {
            self.half_open -= 1;
        }
        // Deregistering fails only for a socket that is gone already.
        let _ = self.poll.registry().deregister(connection.stream.source());
        self.free.push(slot);
    }

    fn is_drained(&mut self) -> bool {
        let sessions: Vec<SessionId> = self.ends.keys().copied().collect();
        let nothing_queued = sessions.iter().all(|session| !self.hub.has_output(*session));
        nothing_queued && self.connections.iter_mut().flatten().all(|connection| connection.unwritten() == 0)
    }

    fn say_goodbye(&mut self, now: Instant) {
        let sessions: Vec<SessionId> = self.ends.keys().copied().collect();
        for session in sessions {
            self.close_session(session, "broker_stopping", "the broker is stopping", now);
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    fn tick(&mut self, now: Instant) {
        self.last_tick = now;
        self.hub.tick(now_ms());
        for slot in 0..self.connections.len() {
            self.check_clocks(slot, now);
        }
        self.accept_paused = true;
        self.reload_registry();
    }

    fn check_clocks(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let since = |instant: Instant| now.saturating_duration_since(instant);
        let blocked = connection.blocked_since.is_some_and(|at| since(at) > limits::WRITE_TIMEOUT);
        let stuck = connection.frame_since.is_some_and(|at| since(at) > limits::READ_TIMEOUT);
        match &connection.phase {
            Phase::Handshaking if since(connection.opened) > limits::HANDSHAKE_TIMEOUT => {
                let stage = connection.engine.stage();
                let text = format!("{} was awaited for {} s", stage, limits::HANDSHAKE_TIMEOUT.as_secs());
                debug_assert!(stage != Stage::Session, "an open session is not handshaking");
                self.refuse(slot, "handshake_timeout", &text, None, now);
                self.drop_connection(slot);
            }
            Phase::Handshaking => {}
            Phase::Closing if since(connection.opened) > Duration::from_secs(2) => self.drop_connection(slot),
            Phase::Closing => {}
            Phase::Open { .. } if blocked => self.lose(slot, "write_timeout", "the peer takes no bytes", now),
            Phase::Open { .. } if stuck => {
                self.lose(slot, "read_timeout", "a frame was begun and not finished", now)
            }
            Phase::Open { .. } => self.check_liveness(slot, now),
        }
    }

    /// Pings a silent session, and ends one that stays silent. Stock 3.0 peers know no PING.
    fn check_liveness(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if connection.is_readable {
            // Held back by us, not silent.
            return list(&mut self.readable, slot, connection);
        }
        let silent = now.saturating_duration_since(connection.last_read);
        let knows_ping = connection.engine.peer_version().is_some_and(|version| version.minor >= 1);
        if connection.pinged && silent > limits::PING_INTERVAL + limits::PING_TIMEOUT {
            return self.lose(slot, "silent", "the peer did not answer a ping", now);
        }
        if !connection.pinged && knows_ping && silent > limits::PING_INTERVAL {
            connection.pinged = true;
            let ping = zmtp::Command::Ping { ttl: Duration::ZERO, context: bytes::Bytes::new() }.encode();
            if connection.engine.send(&[&ping], FrameFlags::COMMAND).is_ok() {
                self.write(slot, now);
            }
        }
    }

    fn reload_registry(&mut self) {
        let Some(watch) = &mut self.registry_watch else { return };
        match watch.changed() {
            None => {}
            Some(Ok(edited)) => {
                tracing::info!(peers = edited.peers().count(), "authorised peers read again");
                self.registry.replace_peers(edited);
                let registry = &self.registry;
                self.hub.reauthorise(|info| match info.key {
                    Some(key) => registry
                        .authenticate(&key)
                        .map(|(_, permissions)| permissions)
                        .map_err(|refusal| Ending { code: "revoked", text: refusal.to_string() }),
                    None => {
                        registry.peer(&info.peer).map(|peer| Arc::clone(&peer.permissions)).ok_or_else(|| {
                            Ending {
                                code: "revoked",
                                text: "the peer is no longer in the registry".to_owned(),
                            }
                        })
                    }
                });
            }
            Some(Err(error)) => {
                tracing::error!(%error, "authorised peers not read again; the old rules stay");
                self.hub
                    .publish_own("$sys/auth/registry", &serde_json::json!({ "error": error.to_string() }));
            }
        }
    }
}

/// Puts a connection into the list of those to be read, once.
fn list(readable: &mut VecDeque<usize>, slot: usize, connection: &mut Connection) {
    if !connection.is_listed {
        connection.is_listed = true;
        readable.push_back(slot);
    }
}

/// What the metadata ask for, and whether it is a REQ.
fn session_kind(metadata: &Metadata) -> Result<(SessionKind, bool), String> {
    let socket_type = metadata.socket_type().ok_or("the handshake names no socket type")?;
    if metadata.get(X_INTERLOCK).is_some() {
        return match socket_type {
            SocketType::Dealer => Ok((SessionKind::Native, false)),
            other => Err(format!("a native session needs a DEALER socket, not {other}")),
        };
    }
    match socket_type {
        SocketType::Pub | SocketType::Xpub => Ok((SessionKind::StockPublisher, false)),
        SocketType::Sub | SocketType::Xsub => Ok((SessionKind::StockSubscriber, false)),
        SocketType::Req => Ok((SessionKind::StockRequester, true)),
        SocketType::Dealer => Ok((SessionKind::StockRequester, false)),
        other => Err(format!("a {other} socket has no place here; use PUB, SUB, REQ or DEALER")),
    }
}

/// libzmq's PUB drops whatever nobody has subscribed to, so the broker subscribes at once.
fn subscribe_to_everything(engine: &mut Engine) -> Result<(), ZmtpError> {
    if engine.peer_version().is_some_and(|version| version.minor >= 1) {
        let subscribe = zmtp::Command::Subscribe(bytes::Bytes::new()).encode();
        engine.send(&[&subscribe], FrameFlags::COMMAND)
    } else {
        engine.send(&[&[1]], FrameFlags::LAST)
    }
}

fn take_batch(
    hub: &mut Hub,
    session: SessionId,
    reader: &mut BatchReader,
    body: bytes::Bytes,
) -> Result<(), String> {
    reader.begin(body);
    while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
        hub.record(session, record);
    }
    Ok(())
}

/// Seals one batch of whatever is ready; `false` if nothing was.
fn seal_batch(
    hub: &mut Hub,
    session: SessionId,
    writer: &mut BatchWriter,
    scratch: &mut Vec<u8>,
    engine: &mut Engine,
) -> Result<bool, ZmtpError> {
    scratch.clear();
    while scratch.len() < limits::BATCH_BYTES {
        if writer.in_fragments() {
            while let Some(record) = hub.next_control(session) {
                writer.put_control(&record, scratch);
            }
            writer.next_fragment(scratch);
            break;
        }
        let Some(record) = hub.next_record(session) else { break };
        writer.put(&record, scratch);
    }
    if scratch.is_empty() {
        // A record that begins to go out in fragments has put nothing yet.
        return Ok(writer.in_fragments());
    }
    engine.send(&[scratch], FrameFlags::LAST)?;
    Ok(true)
}

/// Seals one stock message; `false` if there was none.
fn seal_stock(
    hub: &mut Hub,
    session: SessionId,
    stock: &mut Stock,
    engine: &mut Engine,
    deliveries: &mut u64,
) -> Result<bool, ZmtpError> {
    let Some(record) = hub.next_record(session) else { return Ok(false) };
    *deliveries += u64::from(matches!(record, Record::Deliver { .. }));
    let frames = stock.frames_of(record);
    for (index, frame) in frames.iter().enumerate() {
        let flags = if index + 1 < frames.len() { FrameFlags::MORE } else { FrameFlags::LAST };
        engine.send(&[frame], flags)?;
    }
    Ok(true)
}

fn fragments_wait(connection: &Connection) -> bool {
    matches!(&connection.phase, Phase::Open { speech: Speech::Native { writer, .. }, .. } if writer.in_fragments())
}

fn deliver_locally(hub: &mut Hub, session: SessionId, sink: &Arc<dyn RecordSink>) {
    let mut records = Vec::new();
    while let Some(record) = hub.next_record(session) {
        records.push(record);
        if records.len() == LOCAL_BATCH {
            sink.on_records(&mut records);
            records.clear();
        }
    }
    if !records.is_empty() {
        sink.on_records(&mut records);
    }
}

fn now_ms() -> u64 {
    envelope::now_ns() / 1_000_000
}

/// Notices that the registry's file was edited.
struct RegistryWatch {
    path: std::path::PathBuf,
    seen: Option<(u64, i64, i64, u64)>,
}

impl RegistryWatch {
    fn new(path: std::path::PathBuf) -> Self {
        let seen = stamp(&path);
        Self { path, seen }
    }

    /// The edited registry, or why it cannot be read; `None` if nothing has changed.
    fn changed(&mut self) -> Option<Result<Registry, KeyError>> {
        let now = stamp(&self.path);
        if now == self.seen {
            return None;
        }
        self.seen = now;
        Some(Registry::load(&self.path))
    }
}

/// What changes when a file is written or replaced; `None` if there is none.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}
