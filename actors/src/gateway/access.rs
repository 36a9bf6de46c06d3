//! Who asks, and what they may: the bearer of a token, its scopes, and the peer it stands for on the bus.

use std::{
    fmt,
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload};
use interlock_bus::{Client, PeerName, client::LinkState};

use super::{
    error::ApiError,
    token::{self, Token},
};
use crate::actor::Failure;

/// What a token is good for. Each is given by itself: none holds another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Conversations, the OpenAI routes, models.
    Chat,
    /// Publish, subscribe, request, the socket, within the rights of the token's peer.
    Bus,
    /// Reading what goes on: topics, peers, refusals, logs, status.
    Inspect,
    /// Every order that can be given.
    Admin,
    /// The numbers at `/metrics`.
    Metrics,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Bus, Self::Inspect, Self::Admin, Self::Metrics];

    /// Its name in commands, files and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Bus => "bus",
            Self::Inspect => "inspect",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Gives a session on the bus, in this process, to the peer of that name.
pub type Attach = dyn Fn(&PeerName) -> Result<Client, Failure> + Send + Sync;

/// Knows the tokens.
pub(super) struct Doorkeeper {
    token: Token,
    operator: Arc<Bearer>,
}

impl fmt::Debug for Doorkeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Doorkeeper")
    }
}

impl Doorkeeper {
    /// For the operator's token, whose bearer is this peer on the bus.
    pub(super) fn new(token: Token, operator: PeerName, attach: Arc<Attach>) -> Self {
        let operator = Bearer {
            name: operator.to_string(),
            peer: operator,
            scopes: Scope::ALL.to_vec(),
            attach,
            session: Mutex::default(),
        };
        Self { token, operator: Arc::new(operator) }
    }

    /// Whoever has the token of this header.
    pub(super) fn admit(&self, authorization: Option<&[u8]>) -> Result<Access, ApiError> {
        self.admit_token(authorization.and_then(token::bearer).ok_or(ApiError::Unauthorized)?)
    }

    /// Whoever has this token, for those who cannot send the header.
    pub(super) fn admit_token(&self, token: &[u8]) -> Result<Access, ApiError> {
        if !self.token.is(token) {
            return Err(ApiError::Unauthorized);
        }
        Ok(Access(Arc::clone(&self.operator)))
    }
}

/// One token's bearer.
struct Bearer {
    name: String,
    peer: PeerName,
    scopes: Vec<Scope>,
    attach: Arc<Attach>,
    /// Its session, from its first use on.
    session: Mutex<Option<Client>>,
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
        Err(ApiError::Forbidden { bearer: self.0.name.clone(), scope })
    }

    /// A session on the bus with the rights of the token's peer. Requests of one token share it.
    pub(super) fn client(&self) -> Result<Client, ApiError> {
        let Bearer { peer, attach, session, .. } = &*self.0;
        // No code that can panic runs under this lock.
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = |client: &&Client| *client.watch().borrow() != LinkState::Closed;
        if let Some(client) = session.as_ref().filter(lives) {
            return Ok(client.clone());
        }
        let client = attach(peer).map_err(|failure| ApiError::NoSession(failure.to_string()))?;
        *session = Some(client.clone());
        Ok(client)
    }
}

impl FromRequest for Access {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.extensions().get::<Self>().cloned().ok_or(ApiError::Unauthorized))
    }
}
