//! The client's thread: makes the first session or says why not, and later ones when a session is lost.

use std::{
    io,
    sync::{Arc, MutexGuard, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Poll, Waker};
use tokio::sync::oneshot;

use super::{
    core::{Core, SessionEnd},
    link::Link,
    options::ConnectOptions,
    outgoing::{Hands, Outgoing},
    readers::TICK,
    session::{End, SOCKET, Session, WAKER, Written},
    socket::{self, Address, Socket},
    wire::{self, CREDIT_PAUSE, Wire},
};
use crate::{
    crypto::{self, CryptoError, PublicKey},
    endpoint::Endpoint,
    error::ConnectError,
    keys::Credentials,
    limits, native,
    zmtp::{ClientConfig, Engine, Metadata, Refusal, SocketType, X_INTERLOCK, ZmtpError},
};

/// Boxes sealed and written before the socket is read again.
const WRITE_TURN_BATCHES: usize = 8;
/// Waits between attempts: the first, and the longest, with jitter down to half.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The same after an ERROR in clear text, which may be forged but is probably true.
const BACKOFF_REFUSED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

type Outcome = oneshot::Sender<Result<(), ConnectError>>;
type Started = (Arc<Core>, JoinHandle<()>, oneshot::Receiver<Result<(), ConnectError>>);

/// Starts the thread. The receiver gets the outcome of the first session.
pub(super) fn start(options: ConnectOptions) -> Result<Started, ConnectError> {
    static CRYPTO_WORKS: OnceLock<Result<(), CryptoError>> = OnceLock::new();
    CRYPTO_WORKS.get_or_init(crypto::self_test).clone().map_err(ConnectError::Crypto)?;
    let poll = Poll::new().map_err(ConnectError::Thread)?;
    let waker = Waker::new(poll.registry(), WAKER).map_err(ConnectError::Thread)?;
    let registry = poll.registry().try_clone().map_err(ConnectError::Thread)?;
    let wire = Arc::new(Wire::new(registry, waker));
    let outgoing = Arc::new(Outgoing::new(Arc::clone(&wire) as Arc<dyn Hands>));
    let core = Core::new(Arc::clone(&outgoing) as Arc<dyn Link>);
    let (outcome, answer) = oneshot::channel();
    let name = format!("bus-{}", options.credentials.name);
    let thread_core = Arc::clone(&core);
    let thread = thread::Builder::new()
        .name(name)
        .spawn(move || {
            crate::threads::started();
            let _last_words = LastWords(Arc::clone(&thread_core));
            let events = Events::with_capacity(8);
            let credentials = options.credentials.clone();
            let bench =
                Workbench { core: &thread_core, outgoing: &outgoing, wire: &wire, poll, events, credentials };
            Remote { options: &options, bench }.run(outcome);
        })
        .map_err(ConnectError::Thread)?;
    Ok((core, thread, answer))
}

/// Closes the core if the thread panics, so that nobody waits for ever.
struct LastWords(Arc<Core>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.session_closed("the client's thread has ended");
    }
}

/// What the client's thread has for all its sessions.
struct Workbench<'a> {
    core: &'a Core,
    outgoing: &'a Outgoing,
    wire: &'a Wire,
    poll: Poll,
    events: Events,
    /// Who the client is, and the broker's key; a session may bring a new one.
    credentials: Credentials,
}

impl Workbench<'_> {
    /// Waits for an event, a wake or the time. An interrupted wait is taken up again by its caller.
    fn wait(&mut self, timeout: Duration) -> Result<(), End> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(End::Io(error)),
            Err(_) => {
                self.events.clear();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Goes on until the broker has said hello.
    fn open(&mut self, session: &mut Session, deadline: Instant) -> Result<(), End> {
        self.core.begin_session();
        while !session.is_open() {
            if self.outgoing.is_closing() {
                return Err(End::Closed);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(End::TimedOut);
            }
            let wake_at = session.check_clocks(self.core, self.outgoing, now)?.min(deadline);
            let must_not_wait = session.has_input();
            self.wait(if must_not_wait { Duration::ZERO } else { wake_at - now })?;
            for event in self.events.iter().filter(|event| event.token() == SOCKET) {
                session.on_socket_event(event);
            }
            session.advance(self.core)?;
        }
        if let Some(key) = session.take_new_broker_key() {
            self.learn_broker_key(key);
        }
        Ok(())
    }

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

    /// Shares the session and goes on until it ends.
    fn run(&mut self, session: Session) -> End {
        self.wire.install(session, self.outgoing);
        let mut has_duty = false;
        let end = loop {
            if let Err(end) = self.turn(&mut has_duty) {
                break end;
            }
        };
        if has_duty {
            self.outgoing.leave_to_thread();
        }
        let mut session = self.wire.remove(self.outgoing);
        let was_closing = session.as_ref().is_some_and(Session::is_closing);
        if let Some(key) = session.as_mut().and_then(Session::take_new_broker_key) {
            self.learn_broker_key(key);
        }
        match end {
            End::PeerClosed | End::Said(SessionEnd::Goodbye { .. }) if was_closing => End::Closed,
            end if was_closing => {
                tracing::debug!(%end, "the link broke while it was being closed");
                End::Closed
            }
            end => end,
        }
    }

    /// Writes what is there, waits for one event, reads what has come. Other threads use the session
    /// meanwhile: nothing of it is remembered here except the duty to write.
    fn turn(&mut self, has_duty: &mut bool) -> Result<(), End> {
        let registry = self.wire.registry();
        if self.core.owes_credit_since().is_some_and(|since| since.elapsed() >= CREDIT_PAUSE) {
            self.core.send_owed_credit();
        }
        *has_duty = *has_duty || self.outgoing.claim();
        let now = Instant::now();
        let (wake_at, must_not_wait, new_key) = {
            let mut guard = self.wire.session();
            let session = own(&mut guard)?;
            if session.is_closing() {
                session.go_on_closing(registry)?;
            } else if *has_duty {
                match session.write(self.outgoing, registry, WRITE_TURN_BATCHES)? {
                    Written::All | Written::Blocked => *has_duty = false,
                    Written::More => {}
                    Written::Close => {
                        session.begin_closing()?;
                        session.go_on_closing(registry)?;
                    }
                }
            }
            if session.readers.is_ticking() && session.readers.tick(now) {
                session.set_read_by_thread(registry, true);
            }
            let mut wake_at = session.check_clocks(self.core, self.outgoing, now)?;
            let was_left = match session.readers.is_ticking() {
                true => {
                    wake_at = wake_at.min(now + TICK);
                    false
                }
                false => self.outgoing.end_ticking(),
            };
            if let Some(since) = self.core.owes_credit_since() {
                wake_at = wake_at.min(since + CREDIT_PAUSE);
            }
            let must_not_wait = was_left || session.has_input() || (*has_duty && !session.is_closing());
            (wake_at, must_not_wait, session.take_new_broker_key())
        };
        if let Some(key) = new_key {
            self.learn_broker_key(key);
        }
        let wake_at = self.core.plan(wake_at);
        let timeout = if must_not_wait { Duration::ZERO } else { wake_at.saturating_duration_since(now) };
        self.wait(timeout)?;
        let mut guard = self.wire.session();
        let session = own(&mut guard)?;
        for event in self.events.iter().filter(|event| event.token() == SOCKET) {
            session.on_socket_event(event);
            *has_duty |= event.is_writable() && self.outgoing.unblock();
        }
        if session.has_input() {
            let (read, took_duty) = wire::read(session, self.outgoing, self.core);
            *has_duty |= took_duty;
            read?;
            if session.has_new_broker_key() {
                Hands::wake(self.wire);
            }
        }
        Ok(())
    }
}

/// The session this thread has shared, unless another one has found that it is over.
fn own<'a>(guard: &'a mut MutexGuard<'_, Option<Session>>) -> Result<&'a mut Session, End> {
    let session = guard.as_mut().expect("shared by this thread, which alone takes it back");
    match session.take_end() {
        Some(end) => Err(end),
        None => Ok(session),
    }
}

struct Remote<'a> {
    options: &'a ConnectOptions,
    bench: Workbench<'a>,
}

impl Remote<'_> {
    fn run(&mut self, outcome: Outcome) {
        let mut session = match self.first_session() {
            Ok(session) => session,
            Err(error) => {
                self.bench.core.session_closed(&error.to_string());
                // The receiver is gone if nobody waits for the client any more.
                let _ = outcome.send(Err(error));
                return;
            }
        };
        let _ = outcome.send(Ok(()));
        loop {
            let end = self.bench.run(session);
            let unsent = self.bench.outgoing.end_session();
            if let Some(reason) = definite(&end, self.bench.credentials.file.is_some()) {
                if unsent > 0 {
                    tracing::warn!(unsent, reason, "messages were not sent before the client closed");
                }
                return self.bench.core.session_closed(&reason);
            }
            tracing::warn!(peer = %self.bench.credentials.name, reason = %end, unsent, "link to the broker lost");
            self.bench.core.session_lost(&end.to_string());
            match self.later_session() {
                Some(renewed) => session = renewed,
                None => return self.bench.core.session_closed("closed by its owner"),
            }
            tracing::info!(peer = %self.bench.credentials.name, "link to the broker renewed");
        }
    }

    /// Tries every endpoint in order, once; again and again only if asked to wait for the broker.
    fn first_session(&mut self) -> Result<Session, ConnectError> {
        let deadline = Instant::now() + self.options.timeout;
        let mut attempt = 0;
        loop {
            let error = match self.try_endpoints(deadline) {
                Ok(session) => return Ok(session),
                Err((error, _)) => error,
            };
            let waits = self.options.waits_for_broker && error.is_passing();
            let pause = backoff(attempt, BACKOFF);
            if !waits || Instant::now() + pause >= deadline || !self.pause(pause) {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// Tries until there is a session again; `None` if the client was closed.
    fn later_session(&mut self) -> Option<Session> {
        self.found_new_keys();
        let mut attempt = 0;
        let mut range = BACKOFF;
        loop {
            if !self.pause(backoff(attempt, range)) {
                return None;
            }
            match self.try_endpoints(Instant::now() + self.options.timeout) {
                Ok(session) => return Some(session),
                Err((error, refused)) => {
                    tracing::debug!(%error, attempt, "no new session yet");
                    let may_be_new = matches!(
                        error,
                        ConnectError::WrongServerKey { .. } | ConnectError::KeyRefused { .. }
                    );
                    if may_be_new && self.found_new_keys() {
                        continue;
                    }
                    if !self.bench.outgoing.is_closing() {
                        self.bench.core.still_lost(&error.to_string());
                    }
                    if refused && range != BACKOFF_REFUSED {
                        (range, attempt) = (BACKOFF_REFUSED, 0);
                    } else {
                        attempt += 1;
                    }
                }
            }
        }
    }

    /// Whether the credentials file of this peer has other keys than those that were refused: the broker's was renewed
    /// while there was no session to say so in, or the peer was given a new one.
    fn found_new_keys(&mut self) -> bool {
        let credentials = &mut self.bench.credentials;
        let read = credentials.file.as_deref().and_then(|path| Credentials::load(path).ok());
        let Some(read) = read.filter(|read| read.name == credentials.name) else {
            return false;
        };
        let is_new = read.broker != credentials.broker || read.keys.public != credentials.keys.public;
        (credentials.broker, credentials.keys) = (read.broker, read.keys);
        is_new
    }

    /// Waits; `false` if the client was closed meanwhile.
    fn pause(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while !self.bench.outgoing.is_closing() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            // An interrupted wait is taken up again.
            let _ = self.bench.poll.poll(&mut self.bench.events, Some(left));
        }
        false
    }

    /// The error is that of the endpoint that came furthest, with whether a broker refused us.
    fn try_endpoints(&mut self, deadline: Instant) -> Result<Session, (ConnectError, bool)> {
        let mut furthest: Option<(ConnectError, bool)> = None;
        for endpoint in self.bench.credentials.endpoints.clone() {
            match self.try_endpoint(&endpoint, deadline) {
                Ok(session) => return Ok(session),
                Err(failed) => {
                    let came_further = match &furthest {
                        None => true,
                        Some((ConnectError::Unreachable { .. }, _)) => {
                            !matches!(failed.0, ConnectError::Unreachable { .. })
                        }
                        Some(_) => false,
                    };
                    if came_further {
                        furthest = Some(failed);
                    }
                }
            }
        }
        Err(furthest.unwrap_or_else(|| {
            let name = self.bench.credentials.name.clone();
            (ConnectError::BadCredentials { name, problem: "they name no endpoint".to_owned() }, false)
        }))
    }

    fn try_endpoint(
        &mut self,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Session, (ConnectError, bool)> {
        let unreachable = |source| (ConnectError::Unreachable { endpoint: endpoint.clone(), source }, false);
        let addresses = socket::addresses(endpoint).map_err(unreachable)?;
        let mut last = None;
        for address in addresses {
            match self.try_address(endpoint, &address, deadline) {
                Ok(session) => return Ok(session),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            unreachable(std::io::Error::new(std::io::ErrorKind::NotFound, "the host name has no address"))
        }))
    }

    fn try_address(
        &mut self,
        endpoint: &Endpoint,
        address: &Address,
        deadline: Instant,
    ) -> Result<Session, (ConnectError, bool)> {
        let started = Instant::now();
        let socket = Socket::open(address, self.bench.poll.registry(), SOCKET)
            .map_err(|source| (ConnectError::Unreachable { endpoint: endpoint.clone(), source }, false))?;
        let mut session = Session::new(socket, Engine::client(client_config(&self.bench.credentials)));
        let deadline = deadline.min(started + limits::HANDSHAKE_TIMEOUT);
        self.bench.open(&mut session, deadline).map_err(|end| {
            // Undoes what the hello may have set in motion before the session failed.
            self.bench.outgoing.end_session();
            let refused = matches!(end, End::PeerError { .. } | End::Said(SessionEnd::Goodbye { .. }));
            (connect_error(&self.bench.credentials, endpoint, &session, end, started.elapsed()), refused)
        })?;
        Ok(session)
    }
}

fn client_config(credentials: &Credentials) -> ClientConfig {
    let metadata = Metadata::new(&SocketType::Dealer)
        .with(X_INTERLOCK, native::VERSION_MAJOR.to_string())
        .expect("the constant is a legal property name and stands once");
    ClientConfig {
        frame_bytes_max: limits::NATIVE_FRAME_BYTES_MAX,
        ..ClientConfig::new(credentials.keys.clone(), credentials.broker, metadata)
    }
}

/// Why no further session is to be tried after this end; `None` if one is. A key that has ended may have been replaced in
/// the credentials file, or may be soon.
fn definite(end: &End, has_file: bool) -> Option<String> {
    match end {
        End::Said(SessionEnd::Goodbye { code, .. })
            if !has_file && matches!(code.as_str(), "key_expired" | "key_replaced") =>
        {
            Some(end.to_string())
        }
        End::Closed | End::Said(SessionEnd::Version { .. }) => Some(end.to_string()),
        End::Said(SessionEnd::Goodbye { code, .. }) if matches!(code.as_str(), "revoked" | "version") => {
            Some(end.to_string())
        }
        _ => None,
    }
}

fn connect_error(
    credentials: &Credentials,
    endpoint: &Endpoint,
    session: &Session,
    end: End,
    waited: Duration,
) -> ConnectError {
    let endpoint = endpoint.clone();
    let wrong_key = |endpoint| ConnectError::WrongServerKey { endpoint, expected: credentials.broker };
    match end {
        End::Io(source) if !session.is_connected() => ConnectError::Unreachable { endpoint, source },
        End::Io(source) => ConnectError::Broken { endpoint, awaited: session.awaited(), source },
        End::PeerError { reason } => match Refusal::from_reason(&reason) {
            Refusal::ServerKeyWrong => wrong_key(endpoint),
            Refusal::KeyRefused => ConnectError::KeyRefused { endpoint, name: credentials.name.clone() },
            _ => ConnectError::Refused { endpoint, reason: format!("ERROR `{reason}`") },
        },
        End::Zmtp(ZmtpError::BoxRefused { name: "WELCOME" }) => wrong_key(endpoint),
        End::Zmtp(ZmtpError::Key(problem)) => {
            ConnectError::BadCredentials { name: credentials.name.clone(), problem: problem.to_string() }
        }
        // A broker that dies; which of the two ends is seen depends on what it had read.
        End::Zmtp(source @ ZmtpError::ClosedDuringHandshake { .. }) => ConnectError::Broken {
            endpoint,
            awaited: session.awaited(),
            source: std::io::Error::new(std::io::ErrorKind::UnexpectedEof, source),
        },
        End::Zmtp(source) => ConnectError::NotInterlock { endpoint, source },
        End::Said(SessionEnd::Goodbye { code, text }) if code == "broker_stopping" => ConnectError::Broken {
            endpoint,
            awaited: session.awaited(),
            source: std::io::Error::new(std::io::ErrorKind::ConnectionAborted, text),
        },
        End::Said(SessionEnd::Goodbye { code, text }) if code != "version" => {
            ConnectError::Refused { endpoint, reason: format!("goodbye `{code}`: {text}") }
        }
        end @ (End::Record(_) | End::Said(_)) => {
            ConnectError::ProtocolMismatch { endpoint, seen: end.to_string() }
        }
        End::TimedOut | End::Silent | End::Stuck { .. } => {
            ConnectError::TimedOut { endpoint, waited, awaited: session.awaited() }
        }
        end @ (End::Closed | End::PeerClosed | End::Overflowed) => {
            ConnectError::Refused { endpoint, reason: end.to_string() }
        }
    }
}

/// The wait before attempt `attempt`, counted from zero.
fn backoff(attempt: u32, (first, longest): (Duration, Duration)) -> Duration {
    let full = first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(longest);
    let random = u32::from(u16::from_le_bytes(crypto::random()));
    full / 2 + (full / 2) * random / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_and_have_a_longest() {
        for (attempt, full_ms) in [(0, 50), (1, 100), (6, 3200), (7, 5000), (40, 5000), (u32::MAX, 5000)] {
            for _ in 0..20 {
                let full = Duration::from_millis(full_ms);
                let wait = backoff(attempt, BACKOFF);
                assert!(wait >= full / 2 && wait <= full, "attempt {attempt}: {wait:?}");
            }
        }
    }
}
