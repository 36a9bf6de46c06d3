//! The broker: an encrypted ZeroMQ server on one endpoint per transport.
//!
//! | file | noun |
//! |---|---|
//! | `hub` | all state without sockets: sessions, routes, requests (pure) |
//! | `send_queue` | the queue towards one subscription and its overflow policies (pure) |
//! | `ledger`, `statistics`, `denials`, `refusals`, `requests` | what the hub counts and remembers (pure) |
//! | `readiness` | who waits for whom: watches of receivers, probes, gates (pure) |
//! | `drops` | lost messages, told without flooding (pure) |
//! | `explain` | who publishes and gets a topic; why a peer may or may not (pure) |
//! | `history` | what each topic had in each second of the last hour (pure) |
//! | `bounds` | what the owner of a broker may bound differently |
//! | `control` | answers to `$sys/broker/...` |
//! | `stock` | what stock sessions' frames mean |
//! | `listener`, `connection`, `reactor` | sockets, one thread |
//! | `timeouts`, `key_store_watch`, `throttle` | clocks, edits of registry and keys, floods in the log |
//! | `last_use` | when keys were last used, written down |

mod bounds;
pub(crate) mod command;
mod connection;
mod control;
mod delay;
pub mod denials;
mod drops;
pub mod events;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod history;
pub mod hub;
mod key_store_watch;
mod last_use;
pub mod ledger;
mod listener;
#[cfg(test)]
mod model;
mod overview;
mod reactor;
mod read_buffer;
mod readiness;
pub mod refusals;
pub mod requests;
pub mod send_queue;
pub mod statistics;
pub mod stock;
mod throttle;
mod timeouts;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use dashmap::DashMap;
use tokio::sync::watch;

use crate::{
    crypto::{self, KeyPair, PublicKey},
    endpoint::Endpoint,
    keys::{BrokerKeys, Credentials, KeyError, KeyStore, Registry},
    limits,
    local::{CommandQueue, LocalPort, RecordSink},
    peer::PeerName,
};
pub use reactor::accepting::raise_open_files_limit;

pub use bounds::Bounds;
use command::Command;
use reactor::Reactor;
pub use timeouts::Timeouts;

/// What a broker is started with.
#[derive(Debug)]
pub struct BrokerConfig {
    /// Where to listen, at most one per transport. Port 0 lets the system choose.
    pub endpoints: Vec<Endpoint>,
    /// Its key, and those it replaced that are still accepted.
    pub keys: BrokerKeys,
    /// The file `keys` came from, watched for a rotation; `None` if they never change.
    pub keys_path: Option<PathBuf>,
    /// Who may connect, and do what.
    pub registry: Registry,
    /// The file `registry` came from, watched for edits; `None` if it never changes.
    pub registry_path: Option<PathBuf>,
    /// How long peers are waited for.
    pub timeouts: Timeouts,
    /// How much it holds.
    pub bounds: Bounds,
}

impl BrokerConfig {
    /// A broker on a key store, with live edits of its registry.
    ///
    /// # Errors
    /// A registry that cannot be read.
    pub fn from_key_store(store: &KeyStore, endpoints: Vec<Endpoint>) -> Result<Self, KeyError> {
        Ok(Self {
            endpoints,
            keys: store.broker_keys()?,
            keys_path: Some(store.broker_keys_path()),
            registry: store.registry()?,
            registry_path: Some(store.registry_path()),
            timeouts: Timeouts::default(),
            bounds: Bounds::default(),
        })
    }

    /// Lets the keys of `incarnations` stay valid: those who run while their broker is started again have nothing else
    /// to come back with.
    #[must_use]
    pub fn with_incarnations(mut self, incarnations: &Incarnations) -> Self {
        self.registry.share_incarnations(Arc::clone(&incarnations.0));
        self
    }
}

/// The keys of incarnations that a broker accepts, and the next one may. Clones are the same keys.
#[derive(Clone, Debug)]
pub struct Incarnations(Arc<DashMap<PublicKey, PeerName>>);

impl Incarnations {
    /// Ends the validity of a key while no broker runs.
    pub fn revoke(&self, key: &PublicKey) {
        self.0.remove(key);
    }
}

/// Why a broker could not start or take a client in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// An endpoint cannot be listened on.
    #[error(
        "cannot listen on `{endpoint}`: {}; free it, or choose another with `bus.endpoints` (`--listen` of `bus broker`)",
        reason(source)
    )]
    Bind {
        /// The endpoint.
        endpoint: Endpoint,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No endpoint was given.
    #[error("a broker needs at least one {missing}")]
    Nothing {
        /// What is missing.
        missing: &'static str,
    },
    /// The known-answer test failed: no service with broken cryptography.
    #[error("the cryptography does not work on this machine: {0}")]
    Crypto(#[from] crypto::CryptoError),
    /// The system refused a thread or a poll.
    #[error("the broker's thread cannot start: {0}")]
    Thread(#[source] std::io::Error),
    /// An attached client's name is not in the registry, or has no rights.
    #[error("`{peer}` may not attach: {reason}")]
    NotAuthorised {
        /// The name.
        peer: PeerName,
        /// Why.
        reason: String,
    },
    /// The broker has ended.
    #[error("the broker has ended")]
    Ended,
}

fn reason(source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        _ => source.to_string(),
    }
}

/// A running broker. Clones are the same broker; it ends with [`BrokerHandle::stop`] or with the process.
#[derive(Clone, Debug)]
pub struct BrokerHandle {
    commands: CommandQueue,
    endpoints: Arc<[Endpoint]>,
    public_key: Arc<Mutex<PublicKey>>,
    incarnations: Arc<DashMap<PublicKey, PeerName>>,
    ended: watch::Receiver<Option<String>>,
    thread: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
}

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

impl Broker {
    /// Starts a broker on a thread of its own. It listens when this returns.
    ///
    /// # Errors
    /// [`BrokerError`]; nothing is left running or listening.
    pub fn start(config: BrokerConfig) -> Result<BrokerHandle, BrokerError> {
        crypto::self_test()?;
        let public_key = Arc::new(Mutex::new(config.keys.current.public));
        if config.endpoints.is_empty() {
            return Err(BrokerError::Nothing { missing: "endpoint" });
        }
        let incarnations = config.registry.incarnations();
        let poll = mio::Poll::new().map_err(BrokerError::Thread)?;
        let waker = mio::Waker::new(poll.registry(), reactor::WAKER).map_err(BrokerError::Thread)?;
        let (commands, source) = CommandQueue::new(waker, limits::LOCAL_COMMANDS_MAX);
        let listeners = reactor::bind_all(&config.endpoints, &poll)?;
        let endpoints: Arc<[Endpoint]> = listeners.iter().filter_map(listener::Listener::endpoint).collect();
        let (ended_sender, ended) = watch::channel(None);
        let reactor_key = Arc::clone(&public_key);
        let thread = thread::Builder::new()
            .name("bus-broker".to_owned())
            .spawn(move || {
                crate::threads::started();
                let _last_words = LastWords(ended_sender.clone());
                // Built here: the hub stays on this thread.
                let ending = Reactor::new(config, reactor_key, poll, source, listeners).run();
                ended_sender.send_replace(Some(ending));
            })
            .map_err(BrokerError::Thread)?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(BrokerHandle { commands, endpoints, public_key, incarnations, ended, thread })
    }
}

/// Says that the broker's thread has ended even if it panicked.
struct LastWords(watch::Sender<Option<String>>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.send_if_modified(|ending| {
            let is_new = ending.is_none();
            if is_new {
                *ending = Some("the broker's thread panicked".to_owned());
            }
            is_new
        });
    }
}

impl BrokerHandle {
    /// Where it listens, with the ports the system chose.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Its long-term public key. A rotation changes it.
    pub fn public_key(&self) -> PublicKey {
        // A copy is all that is done under this lock.
        *self.public_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session in this process for a registered peer. Blocks until the broker's thread has
    /// answered, which is at once.
    pub(crate) fn attach_sink(
        &self,
        peer: &PeerName,
        sink: Arc<dyn RecordSink>,
    ) -> Result<LocalPort, BrokerError> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let mut command = Command::Attach { peer: peer.clone(), sink, answer };
        while let Err((refused, is_full)) = self.commands.send(command) {
            if !is_full {
                return Err(BrokerError::Ended);
            }
            command = refused;
            thread::yield_now();
        }
        let session = answered.recv().map_err(|_| BrokerError::Ended)??;
        Ok(LocalPort::new(session, self.commands.clone()))
    }

    /// A fresh key pair for one incarnation of `peer`, valid at once and until
    /// [`BrokerHandle::revoke_incarnation`] or [`BrokerHandle::end_incarnation`]. It lives in memory only and has the rights of the name.
    pub fn issue_incarnation(&self, peer: &PeerName) -> Credentials {
        let keys = KeyPair::generate();
        self.incarnations.insert(keys.public, peer.clone());
        let (broker, endpoints) = (self.public_key(), self.endpoints.to_vec());
        Credentials { name: peer.clone(), keys, broker, endpoints, file: None }
    }

    /// The keys it has issued and not revoked, for the broker that comes after it.
    pub fn incarnations(&self) -> Incarnations {
        Incarnations(Arc::clone(&self.incarnations))
    }

    /// Ends the validity of an incarnation's key and the sessions that use it.
    pub fn revoke_incarnation(&self, key: &PublicKey) {
        self.incarnations.remove(key);
        // If the queue is full, the sessions end with their process; the key is void already.
        let _ = self.commands.send(Command::CloseKey(*key));
    }

    /// The same for an incarnation that has ended: what it had sent before is still taken.
    pub fn end_incarnation(&self, key: &PublicKey) {
        self.incarnations.remove(key);
        // As above.
        let _ = self.commands.send(Command::EndKey(*key));
    }

    /// Sends what is queued for at most `grace`, says goodbye to every session and ends. Blocks until then.
    pub fn stop(&self, grace: Duration) {
        let mut command = Command::Stop { grace };
        while let Err((refused, is_full)) = self.commands.send(command) {
            if !is_full {
                break;
            }
            command = refused;
            thread::yield_now();
        }
        let thread = self.thread.lock().map(|mut thread| thread.take());
        if let Ok(Some(thread)) = thread {
            // A panic has been said by `ended`.
            let _ = thread.join();
        }
    }

    /// Becomes `Some(reason)` when the broker has ended, for whatever reason.
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.clone()
    }
}
