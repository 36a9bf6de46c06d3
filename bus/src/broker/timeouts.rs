//! How long the broker waits for its peers.

use std::time::Duration;

use crate::limits;

/// The clocks of a broker. The default is that of [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte to the end of a handshake; see [`limits::HANDSHAKE_TIMEOUT`].
    pub handshake: Duration,
    /// From the first byte of a frame to its last; see [`limits::READ_TIMEOUT`].
    pub read: Duration,
    /// How long a peer may take nothing of what waits in its socket; see [`limits::WRITE_TIMEOUT`].
    pub write: Duration,
    /// Silence after which a peer is pinged; see [`limits::PING_INTERVAL`].
    pub ping_interval: Duration,
    /// Further silence after which it counts as gone; see [`limits::PING_TIMEOUT`].
    pub ping: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: limits::HANDSHAKE_TIMEOUT,
            read: limits::READ_TIMEOUT,
            write: limits::WRITE_TIMEOUT,
            ping_interval: limits::PING_INTERVAL,
            ping: limits::PING_TIMEOUT,
        }
    }
}
