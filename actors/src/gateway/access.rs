//! Who asks, and what they may: the bearer of a token, its scopes, and the peer it stands for on the bus.

use std::{
    fmt,
    future::{Future, Ready, ready},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload};
pub use interlock_bus::keys::token_file::Scope;
use interlock_bus::{BrokerError, Client, PeerName, client::LinkState};
use tokio::sync::watch;

use super::{
    error::ApiError,
    limits::{Allowance, Limit},
    tokens::{TokenRecord, now_ms},
};

/// How long a session on the bus is kept for the next request of its bearer.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(300);

/// Gives a session on the bus, in this process, to the peer of that name.
pub type Attach = dyn Fn(&PeerName) -> Result<Client, BrokerError> + Send + Sync;

/// Why a token has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Somebody has revoked it.
    Revoked,
    /// Its time was over then, Unix milliseconds.
    Expired(u64),
    /// Its entry was changed by hand: whoever has it comes in again by the new one.
    Changed,
}

/// One token's bearer.
pub(super) struct Bearer {
    name: PeerName,
    peer: PeerName,
    scopes: Vec<Scope>,
    /// The entry it comes from; `None` for the operator.
    record: Option<TokenRecord>,
    attach: Arc<Attach>,
    requests: Allowance,
    /// Questions after health, which a flood of others must not starve.
    health: Allowance,
    session: Mutex<Session>,
    /// When it was last let in, Unix milliseconds.
    used_ms: AtomicU64,
    ended: watch::Sender<Option<Ended>>,
}

/// A bearer's session on the bus, from its first use on.
#[derive(Default)]
struct Session {
    client: Option<Client>,
    used: Option<Instant>,
}

impl Bearer {
    /// Whoever has the operator's own token.
    pub(super) fn operator(peer: PeerName, attach: Arc<Attach>, rate: NonZeroU32) -> Self {
        Self::new(peer.clone(), peer, Scope::ALL.to_vec(), None, attach, rate)
    }

    /// Whoever has this token.
    pub(super) fn of(record: TokenRecord, attach: Arc<Attach>, rate: NonZeroU32) -> Self {
        let (name, peer, scopes) = (record.name.clone(), record.peer(), record.scopes.clone());
        let bearer = Self::new(name, peer, scopes, Some(record), attach, rate);
        bearer.check_end(now_ms());
        bearer
    }

    fn new(
        name: PeerName,
        peer: PeerName,
        scopes: Vec<Scope>,
        record: Option<TokenRecord>,
        attach: Arc<Attach>,
        rate: NonZeroU32,
    ) -> Self {
        let (session, used_ms, ended) = (Mutex::default(), AtomicU64::new(0), watch::Sender::new(None));
        let (requests, health) = (Allowance::per_minute(rate), Allowance::per_minute(rate));
        Self { name, peer, scopes, record, attach, requests, health, session, used_ms, ended }
    }

    /// The entry it comes from.
    pub(super) fn record(&self) -> Option<&TokenRecord> {
        self.record.as_ref()
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// When it was last let in, if ever.
    pub(super) fn used_ms(&self) -> Option<u64> {
        Some(self.used_ms.load(Ordering::Relaxed)).filter(|at_ms| *at_ms > 0)
    }

    /// Ends it for everybody who has come in by it; what ended it first stays the reason.
    pub(super) fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let is_new = ended.is_none();
            *ended = Some(ended.unwrap_or(why));
            is_new
        });
        *self.session() = Session::default();
    }

    /// Ends it if its entry says so.
    pub(super) fn check_end(&self, now_ms: u64) {
        match &self.record {
            Some(TokenRecord { revoked_ms: Some(_), .. }) => self.end(Ended::Revoked),
            Some(TokenRecord { expires_ms: Some(end_ms), .. }) if *end_ms <= now_ms => {
                self.end(Ended::Expired(*end_ms));
            }
            _ => {}
        }
    }

    /// Gives up a session that nobody has asked for in a while. It ends when the last stream over it has.
    pub(super) fn drop_idle_session(&self, now: Instant) {
        let mut session = self.session();
        if session.used.is_some_and(|used| now.duration_since(used) > SESSION_IDLE_MAX) {
            *session = Session::default();
        }
    }

    /// Lets it in.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Access, ApiError> {
        let now_ms = now_ms();
        self.check_end(now_ms);
        if let Some(ended) = *self.ended.borrow() {
            return Err(self.refusal(ended));
        }
        self.used_ms.store(now_ms, Ordering::Relaxed);
        Ok(Access(Arc::clone(self)))
    }

    fn refusal(&self, ended: Ended) -> ApiError {
        let bearer = self.name.to_string();
        match ended {
            Ended::Revoked => ApiError::TokenRevoked { bearer },
            Ended::Expired(end_ms) => {
                ApiError::TokenExpired { bearer, at: interlock_bus::keys::time_text(end_ms) }
            }
            Ended::Changed => ApiError::TokenChanged { bearer },
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        // No code that can panic runs under this lock.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bearer of a valid token: what a handler asks before it does anything.
#[derive(Clone)]
pub(super) struct Access(Arc<Bearer>);

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Access").field(&self.0.name).finish()
    }
}

impl Access {
    /// Refuses who has no token with this scope.
    pub(super) fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.0.scopes.contains(&scope) {
            return Ok(());
        }
        Err(ApiError::Forbidden { bearer: self.0.name.to_string(), scope })
    }

    /// The peer that the bearer is on the bus.
    pub(super) fn peer(&self) -> &PeerName {
        &self.0.peer
    }

    /// Takes one of the requests that the token has in a minute.
    pub(super) fn take(&self, is_health: bool) -> Result<(), ApiError> {
        let allowance = if is_health { &self.0.health } else { &self.0.requests };
        allowance.take(Limit::Token)
    }

    /// A session on the bus with the rights of the token's peer. Requests of one token share it.
    pub(super) fn client(&self) -> Result<Client, ApiError> {
        let mut session = self.0.session();
        if let Some(ended) = self.0.ended.borrow().as_ref() {
            return Err(self.0.refusal(*ended));
        }
        session.used = Some(Instant::now());
        let lives = |client: &&Client| *client.watch().borrow() != LinkState::Closed;
        if let Some(client) = session.client.as_ref().filter(lives) {
            return Ok(client.clone());
        }
        let client = self.attach()?;
        session.client = Some(client.clone());
        Ok(client)
    }

    /// A session of its own with the same rights, for a stream: what one reader of a session is too slow for is held back
    /// for all readers of that session, so whoever may be slow must not share one. It lasts as long as the stream.
    pub(super) fn own_client(&self) -> Result<Client, ApiError> {
        if let Some(ended) = self.0.ended.borrow().as_ref() {
            return Err(self.0.refusal(*ended));
        }
        self.attach()
    }

    fn attach(&self) -> Result<Client, ApiError> {
        (self.0.attach)(&self.0.peer).map_err(|error| match error {
            BrokerError::NotAuthorised { .. } => ApiError::NotOnBus(error.to_string()),
            error => ApiError::NoSession(error.to_string()),
        })
    }

    /// Ends when the token has, with what is to be said of it. The bodies of streamed answers are cut off then without
    /// their doing (`guarded.rs`).
    pub(super) fn over(&self) -> impl Future<Output = ApiError> + 'static {
        let (mut ended, bearer) = (self.0.ended.subscribe(), Arc::clone(&self.0));
        async move {
            // An error means that nobody is left to end it, and it has not ended: the bearer is ours, too.
            let why = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
            bearer.refusal(why.unwrap_or(Ended::Revoked))
        }
    }

    /// Whether the token has ended.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

impl FromRequest for Access {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.extensions().get::<Self>().cloned().ok_or(ApiError::Unauthorized))
    }
}
