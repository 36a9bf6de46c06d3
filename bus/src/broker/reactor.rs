//! The broker's one thread: waits for sockets and commands, reads, routes, writes.
//!
//! Order of a turn: commands, new connections, reads (bounded per connection), the clocks, then
//! everything that has something to send is written, and sessions that must end are ended. Nothing
//! waits in between.
//!
//! | file | noun |
//! |---|---|
//! | `accepting` | new connections, and the bounds on those without a session |
//! | `handshake` | who gets a session |
//! | `reading` | bytes to records and stock messages |
//! | `writing` | records to bytes |
//! | `ending` | last words, and what a connection leaves behind |
//! | `pace` | whether to look again or to sleep |
//! | `clocks` | deadlines, pings, edits of the registry |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Event};

use super::{
    BrokerConfig, BrokerError, Timeouts,
    command::Command,
    connection::{Connection, Phase, ReadOutcome, Speech, Stream},
    hub::{Ending, Hub, SessionId, SessionInfo, SessionKind},
    key_store_watch::KeyStoreWatch,
    last_use::Keeper,
    listener::Listener,
    read_buffer::ReadBuffer,
    refusals::RefusalEvent,
    stock::{Stock, send_delivery},
    throttle::Throttle,
};
use crate::{
    crypto::PublicKey,
    endpoint::Endpoint,
    envelope,
    keys::{BrokerKeys, Registry, last_use},
    limits,
    local::{CommandSource, Part, RecordSink},
    native::{self, BatchReader, BatchWriter, Record},
    peer::PeerName,
    zmtp::{
        self, Engine, EngineEvent, FrameFlags, Metadata, OpenedFrame, Refusal, ServerConfig, SocketType,
        Stage, X_INTERLOCK, ZmtpError,
    },
};

pub(super) mod accepting;
mod clocks;
mod ending;
mod handshake;
mod pace;
mod reading;
mod writing;

use accepting::Capacity;
use pace::{LOOK_MAX, Pace};

/// The token of the command queue's waker.
pub(super) const WAKER: Token = Token(usize::MAX);
/// The token of what watches the key store.
const KEY_STORE: Token = Token(usize::MAX - 1);
/// Tokens of listeners count down from here, those of connections up from zero.
const LISTENERS: usize = usize::MAX - 16;
/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 1024;
/// How often deadlines, pings and the registry are looked at while something is under way, and while nothing is.
const TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_millis(500);
/// Lines in the log a second about refused connections, and about failures to accept.
const LINES_PER_SECOND: u32 = 20;

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
    keys: BrokerKeys,
    /// Where others read the public key.
    public_key: Arc<Mutex<PublicKey>>,
    key_store_watch: KeyStoreWatch,
    /// Writes down when keys were used; `None` without a key store.
    last_use: Option<Keeper>,
    /// When the next key ends by itself, Unix milliseconds; `u64::MAX` for none.
    next_end_ms: u64,
    timeouts: Timeouts,
    capacity: Capacity,
    hub: Hub,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections in their handshake by number, so the oldest comes first, and their slots.
    half_open: BTreeMap<u64, usize>,
    /// Connections that have said their last words and wait for the peer to close.
    lingering: usize,
    accepted: u64,
    ends: HashMap<SessionId, End>,
    /// Connections with bytes to read, in the order in which they got them.
    readable: VecDeque<usize>,
    /// Connections with bytes to read that are not read, because their publisher is held.
    held_back: BTreeSet<usize>,
    /// Whether connections may wait in a listener.
    accept_ready: bool,
    /// Whether the last attempt to accept found no room, or failed.
    accept_blocked: bool,
    accept_log: Throttle,
    refusal_log: Throttle,
    /// Those that no connection has. One is kept.
    read_buffers: Vec<ReadBuffer>,
    /// How many connections keep one.
    lent_buffers: usize,
    spare_outputs: Vec<Vec<u8>>,
    /// Keys whose holders have ended, and since when. Their sockets tell so at the next look, or when they are read.
    ended_keys: Vec<(PublicKey, Instant)>,
    stop_at: Option<Instant>,
    /// Set when goodbye has been said: how long peers are given to read it.
    farewell_until: Option<Instant>,
    last_tick: Instant,
    pace: Pace,
}

impl Reactor {
    pub(super) fn new(
        config: BrokerConfig,
        public_key: Arc<Mutex<PublicKey>>,
        poll: Poll,
        commands: CommandSource,
        listeners: Vec<Listener>,
    ) -> Self {
        let broker: PeerName = "broker".parse().expect("`broker` is a legal peer name");
        let now = Instant::now();
        let uses = config.registry_path.as_deref().map(|path| path.with_file_name(last_use::FILE));
        let last_use = uses.and_then(|path| Keeper::start(path, now));
        let key_store_watch =
            KeyStoreWatch::new(config.registry_path, config.keys_path, poll.registry(), KEY_STORE);
        let keys = config.keys.in_force(now_ms());
        let mut hub = Hub::new(broker, now_ms());
        hub.set_bounds(config.bounds);
        hub.set_registry(&config.registry);
        hub.set_broker_keys(&keys);
        Self {
            poll,
            commands,
            listeners,
            server: Arc::new(ServerConfig::new(keys.pairs())),
            registry: config.registry,
            keys,
            public_key,
            key_store_watch,
            last_use,
            // The first turn looks.
            next_end_ms: 0,
            timeouts: config.timeouts,
            capacity: Capacity::of_this_process(config.bounds.sessions_max),
            hub,
            connections: Vec::new(),
            free: Vec::new(),
            half_open: BTreeMap::new(),
            lingering: 0,
            accepted: 0,
            ends: HashMap::new(),
            readable: VecDeque::new(),
            held_back: BTreeSet::new(),
            accept_ready: false,
            accept_blocked: false,
            accept_log: Throttle::new(LINES_PER_SECOND, now),
            refusal_log: Throttle::new(LINES_PER_SECOND, now),
            read_buffers: Vec::new(),
            lent_buffers: 0,
            spare_outputs: Vec::new(),
            ended_keys: Vec::new(),
            stop_at: None,
            farewell_until: None,
            last_tick: now,
            pace: Pace::default(),
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
            self.hub.set_now(envelope::now_ns());
            for event in &events {
                self.on_event(event, now);
            }
            self.end_keys(now);
            self.take_commands(now);
            self.take_outboxes(now);
            self.accept_if_room(now);
            self.read_turn(now);
            if now.duration_since(self.last_tick) >= TICK {
                self.tick(now);
            }
            self.end_keys_of_age();
            self.settle(now);
            self.release_held_back();
            if self.has_ended(now) {
                self.write_uses(now, true);
                return "stopped".to_owned();
            }
        }
    }

    /// Waits for sockets, commands or the next tick. Interrupted waits are no error.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let has_clocks =
            self.stop_at.is_some() || !self.half_open.is_empty() || self.hub.requests_in_flight() > 0;
        let mut timeout = if has_clocks { TICK } else { IDLE_TICK };
        let may_accept = self.accept_ready && !self.accept_blocked && self.stop_at.is_none();
        if !self.ended_keys.is_empty() {
            timeout = timeout.min(limits::ENDED_KEY_QUIET / 4);
        }
        let until_end_ms = self.next_end_ms.saturating_sub(now_ms());
        timeout = timeout.min(Duration::from_millis(until_end_ms));
        let is_busy = !self.readable.is_empty();
        if may_accept || is_busy || !self.commands.about_to_sleep() {
            timeout = Duration::ZERO;
        }
        let began = Instant::now();
        let mut waited = Ok(());
        events.clear();
        if !timeout.is_zero() && self.pace.is_quick() {
            while waited.is_ok() && events.is_empty() && began.elapsed() < LOOK_MAX {
                // Whoever has work goes first.
                std::thread::yield_now();
                waited = self.poll.poll(events, Some(Duration::ZERO));
            }
        }
        if waited.is_ok() && events.is_empty() {
            waited = self.poll.poll(events, Some(timeout));
        }
        if !timeout.is_zero() {
            self.pace.waited(began.elapsed());
        }
        self.commands.awake();
        match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    fn on_event(&mut self, event: &Event, now: Instant) {
        let token = event.token();
        if token == WAKER {
            return;
        }
        if token == KEY_STORE {
            return self.reload_key_store(now);
        }
        if token.0 >= LISTENERS {
            self.accept_ready = true;
            return;
        }
        let Some(Some(connection)) = self.connections.get_mut(token.0) else { return };
        let is_closed = event.is_read_closed() || event.is_error();
        connection.is_closed_by_peer |= is_closed;
        if event.is_readable() || is_closed {
            connection.is_readable = true;
            list(&mut self.readable, token.0, connection);
        }
        if event.is_writable() {
            self.write(token.0, now);
        }
    }

    // ---- commands ----------------------------------------------------------------------------

    fn take_commands(&mut self, now: Instant) {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.next() {
                Some(Command::Attach { peer, sink, answer }) => {
                    // The caller may have given up; then the session ends with its sink.
                    let _ = answer.send(self.attach(peer, sink));
                }
                Some(Command::CloseKey(key)) => self.close_key(&key, now),
                Some(Command::EndKey(key)) => self.ended_keys.push((key, now)),
                Some(Command::Stop { grace }) => {
                    self.stop_at.get_or_insert(now + grace);
                }
                None => return,
            }
        }
    }

    /// Takes what attached clients have, of each at most [`limits::READ_TURN_BYTES`], so that none starves another
    /// or a socket.
    fn take_outboxes(&mut self, now: Instant) {
        for (session, outbox) in self.commands.take_announced() {
            let mut taken = 0;
            while let Some(part) = outbox.next() {
                taken += part.bytes();
                match part {
                    Part::Record(record) => self.hub.record(session, record),
                    Part::Batch(batch, _) => {
                        // Nothing comes in fragments here, so nothing stays in the reader.
                        if let Err(error) = self.hub.batch(session, &mut BatchReader::default(), &batch) {
                            self.close_session(session, "protocol", &error.to_string(), now);
                        }
                        outbox.give_back(batch);
                    }
                }
                if taken >= limits::READ_TURN_BYTES {
                    self.commands.announce_again(session, outbox);
                    break;
                }
            }
        }
    }

    fn attach(&mut self, peer: PeerName, sink: Arc<dyn RecordSink>) -> Result<SessionId, BrokerError> {
        let permissions = self.registry.permissions_of(&peer, now_ms()).map_err(|refusal| {
            BrokerError::NotAuthorised { peer: peer.clone(), reason: refusal.to_string() }
        })?;
        let info = SessionInfo {
            peer,
            key: None,
            kind: SessionKind::Local,
            address: "in process".to_owned(),
            server_key: None,
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

    /// Ends the sessions of keys whose holders have ended. Those that they closed themselves end when what they had sent
    /// is read; any other belongs to somebody who has the key and should not. While bytes come nobody knows: a TCP
    /// connection is closed for us when its last bytes are here, and more may be on their way than its buffer takes.
    fn end_keys(&mut self, now: Instant) {
        for (key, since) in std::mem::take(&mut self.ended_keys) {
            let is_over = now - since > limits::ENDED_KEY_GRACE;
            let mut is_open = false;
            for session in self.hub.sessions_of_key(&key) {
                let connection = match self.ends.get(&session) {
                    Some(End::Socket(slot)) => self.connections[*slot].as_ref(),
                    Some(End::Sink(_)) | None => None,
                };
                if connection.is_some_and(|connection| connection.is_closed_by_peer) {
                    continue;
                }
                let brings_bytes = |connection: &Connection| {
                    connection.is_readable
                        || now.saturating_duration_since(connection.last_read) < limits::ENDED_KEY_QUIET
                };
                if !is_over && connection.is_some_and(brings_bytes) {
                    is_open = true;
                } else {
                    self.close_session(session, "revoked", "the incarnation of this key has ended", now);
                }
            }
            if is_open {
                self.ended_keys.push((key, since));
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

fn now_ms() -> u64 {
    envelope::now_ns() / 1_000_000
}
