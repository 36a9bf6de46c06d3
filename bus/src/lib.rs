//! The message bus of Interlock: an encrypted ZeroMQ broker, its client, and what the `bus` tool is made of.
//!
//! Reading order: [`topic`] and [`peer`] (names), [`envelope`] (what travels), [`native`] (how it
//! stands on the wire), [`crypto`] and [`zmtp`] (the encrypted connection under it). [`limits`] holds
//! every bound.

pub mod broker;
pub mod codec;
pub mod crypto;
pub mod endpoint;
pub mod envelope;
pub mod keys;
pub mod limits;
mod local;
pub mod native;
pub mod peer;
pub mod topic;
pub mod zmtp;

pub use broker::{Broker, BrokerConfig, BrokerError, BrokerHandle};
pub use codec::CodecError;
pub use endpoint::Endpoint;
pub use envelope::{ContentType, Header, Message, Payload};
pub use keys::{Credentials, KeyStore, Permissions, Rules};
pub use peer::PeerName;
pub use topic::{TopicError, TopicFilter, TopicName};
