//! The message bus of Interlock: an encrypted ZeroMQ broker, its client, and what the `bus` tool is made of.
//!
//! Reading order: [`topic`] and [`peer`] (names), [`envelope`] (what travels), [`native`] (how it
//! stands on the wire), [`crypto`] and [`zmtp`] (the encrypted connection under it), [`broker`] and
//! [`client`] (the two ends), [`inspect`] (what the broker says of itself). [`limits`] holds
//! every bound.

pub mod blocking;
pub mod broker;
pub mod client;
pub mod codec;
pub mod crypto;
pub mod durable;
pub mod endpoint;
pub mod envelope;
pub mod error;
pub mod exit;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod inspect;
pub mod keys;
pub mod limits;
mod local;
pub mod manual;
pub mod native;
pub mod peer;
pub mod recording;
pub mod schema;
pub mod threads;
pub mod tool;
pub mod topic;
pub mod trace;
pub mod zmtp;

pub use broker::{Bounds, Broker, BrokerConfig, BrokerError, BrokerHandle, Incarnations, Timeouts};
pub use client::{
    Ack, CancelToken, Client, ConnectOptions, Event, GateOptions, GatedPublisher, LinkState, PublishOptions,
    ReplyStream, Request, ServeOptions, Service, SubscribeOptions, Subscription, WaitError,
};
pub use codec::CodecError;
pub use endpoint::Endpoint;
pub use envelope::{ContentType, Header, Message, Payload, StreamMark};
pub use error::{ConnectError, Denial, NextError, PublishError, ReplyError, RequestError, SubscribeError};
pub use keys::{Credentials, KeyStore, Permissions, Rules};
pub use peer::PeerName;
pub use schema::{Schema, SchemaError};
pub use topic::{TopicError, TopicFilter, TopicName};
