//! What a connection is given by its owner.

use super::metadata::Metadata;
use crate::crypto::{KeyPair, PublicKey};
use crate::limits;

/// What all connections of one server share.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The current key first, then those it replaced that are still accepted. Tried in this order.
    pub keys: Vec<KeyPair>,
    /// Bytes of a frame's content, at most, in both directions.
    pub frame_bytes_max: usize,
    /// Bytes of a client's metadata, at most. They come before it is known whether its key is welcome.
    pub metadata_bytes_max: usize,
}

impl ServerConfig {
    /// A configuration with the limits for a stock session. A native one lowers its own with
    /// [`Engine::set_frame_bytes_max`](super::Engine::set_frame_bytes_max).
    pub fn new(keys: Vec<KeyPair>) -> Self {
        Self {
            keys,
            frame_bytes_max: limits::STOCK_FRAME_BYTES_MAX,
            metadata_bytes_max: limits::METADATA_BYTES_MAX,
        }
    }
}

/// What a client brings to a connection.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Its long-term keys.
    pub keys: KeyPair,
    /// The long-term key that the server must hold.
    pub server: PublicKey,
    /// Sent to the server, encrypted; the socket type at least.
    pub metadata: Metadata,
    /// Bytes of a frame's content, at most, in both directions.
    pub frame_bytes_max: usize,
    /// Bytes of the server's metadata, at most.
    pub metadata_bytes_max: usize,
}

impl ClientConfig {
    /// A configuration with the limits for a stock session.
    pub fn new(keys: KeyPair, server: PublicKey, metadata: Metadata) -> Self {
        Self {
            keys,
            server,
            metadata,
            frame_bytes_max: limits::STOCK_FRAME_BYTES_MAX,
            metadata_bytes_max: limits::METADATA_BYTES_MAX,
        }
    }
}
