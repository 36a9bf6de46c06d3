//! What can go wrong on a connection, by what the caller can do about it.

use std::fmt;

use super::greeting::Version;
use super::metadata::MetadataError;
use crate::crypto::{CryptoError, PublicKey};

/// How far a connection has come. Steps are named for what is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The first 64 bytes, of either side.
    Greeting,
    /// Server: the client's first command.
    Hello,
    /// Client: the server's answer to HELLO.
    Welcome,
    /// Server: the client's proof of its long-term key.
    Initiate,
    /// Server: the caller's decision, after [`EngineEvent::Authenticate`](super::EngineEvent).
    Decision,
    /// Client: the server's decision.
    Ready,
    /// The handshake is over; messages travel.
    Session,
    /// Refused, failed, or ended.
    Closed,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Stage::Greeting => "greeting",
            Stage::Hello => "HELLO",
            Stage::Welcome => "WELCOME",
            Stage::Initiate => "INITIATE",
            Stage::Decision => "the decision about its key",
            Stage::Ready => "READY",
            Stage::Session => "messages",
            Stage::Closed => "nothing: the connection has ended",
        })
    }
}

/// Why a connection cannot go on.
///
/// After any error the engine is closed. [`Engine::output`](super::Engine::output) may then still
/// hold an ERROR command for the peer: write it, then close the socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZmtpError {
    /// The first bytes are not a ZMTP signature.
    #[error(
        "the peer does not speak ZMTP: it began with the bytes `{}`; this port takes ZeroMQ connections only", first_bytes.escape_ascii()
    )]
    NotZmtp {
        /// Up to ten bytes.
        first_bytes: Vec<u8>,
    },
    /// ZMTP 1 or 2, or a 3 that is not one.
    #[error("the peer speaks ZMTP {version}; CURVE needs 3.0 or newer, that is libzmq 4.0 or newer")]
    VersionTooOld {
        /// What the peer announced.
        version: Version,
    },
    /// A peer that would talk in clear text (NULL), with a password (PLAIN), or otherwise.
    #[error(
        "the peer asks for the mechanism `{mechanism}`; only `CURVE` is spoken here, set the server key and the peer's own keys"
    )]
    MechanismMismatch {
        /// What the peer announced, without anything unprintable.
        mechanism: String,
    },
    /// HELLO was sealed for a server key that this server does not have. ERROR `500` is in the output.
    #[error("the client uses a wrong server key: none of this server's {keys_tried} keys opens its HELLO")]
    ServerKeyUnknown {
        /// How many keys were tried.
        keys_tried: usize,
    },
    /// The vouch does not bind the client's keys to the server key that HELLO was sealed for.
    /// ERROR `400` is in the output.
    #[error("the client `{key}` did not prove that it owns this key: its vouch is wrong")]
    VouchRefused {
        /// The key it claimed.
        key: PublicKey,
    },
    /// INITIATE did not return the cookie of this connection.
    #[error("the client did not return the cookie of this connection")]
    CookieRefused,
    /// A box of the handshake or of a message does not open.
    #[error("{name} does not open: it was sealed with another key or changed on its way")]
    BoxRefused {
        /// The command that held it.
        name: &'static str,
    },
    /// A peer's key cannot be used.
    #[error("the peer sent an unusable key")]
    Key(#[from] CryptoError),
    /// A nonce that is not greater than the one before: a replay, or a reordered stream.
    #[error("nonce {nonce} is not greater than the last one, {last}: a frame was repeated or reordered")]
    NonceNotIncreasing {
        /// The offending nonce.
        nonce: u64,
        /// The greatest seen before it.
        last: u64,
    },
    /// A nonce of an open session that is not the next one: something on the path took frames away.
    #[error(
        "nonce {nonce} does not follow the last one, {last}: frames were lost on the way, or nonces changed"
    )]
    NonceSkipped {
        /// The offending nonce.
        nonce: u64,
        /// The one before it.
        last: u64,
    },
    /// All 2^64 nonces are used up; connect again.
    #[error("this connection has used all its nonces; connect again")]
    NoncesUsedUp,
    /// The frame announces more than the limit. Found out before a byte of its body was taken.
    #[error(
        "the peer announced a frame of {bytes} bytes while {stage} was awaited; the limit is {limit} bytes"
    )]
    FrameTooLong {
        /// Bytes announced.
        bytes: u64,
        /// Bytes allowed at this stage.
        limit: usize,
        /// What was awaited.
        stage: Stage,
    },
    /// Our own frame exceeds the limit; nothing was written.
    #[error("the frame has {bytes} bytes; the limit is {limit} bytes")]
    SendTooLong {
        /// Bytes of all parts together.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Reserved bits in the first byte of a frame, or MORE on a command.
    #[error("the peer sent a frame with the invalid flags {flags:#04x}")]
    FrameFlags {
        /// The byte.
        flags: u8,
    },
    /// Reserved bits in the flags inside a MESSAGE.
    #[error("the peer sent a MESSAGE with the invalid flags {flags:#04x}")]
    MessageFlags {
        /// The byte.
        flags: u8,
    },
    /// Something well formed at the wrong time.
    #[error("the peer sent `{name}` while {stage} was awaited")]
    Unexpected {
        /// The command's name, or what else it was.
        name: String,
        /// What was awaited.
        stage: Stage,
    },
    /// A command whose fields do not fit its size.
    #[error("the peer sent a malformed {name}: {bytes} bytes, expected {expected}")]
    Malformed {
        /// The command's name.
        name: &'static str,
        /// Bytes found.
        bytes: usize,
        /// What would have been right.
        expected: &'static str,
    },
    /// HELLO of another CurveZMQ version.
    #[error("the client speaks CurveZMQ {major}.{minor}; only 1.0 is spoken here")]
    CurveVersion {
        /// As sent.
        major: u8,
        /// As sent.
        minor: u8,
    },
    /// The peer's metadata.
    #[error("the peer's metadata are refused")]
    Metadata(#[from] MetadataError),
    /// The peer closed the connection during the handshake.
    #[error("the peer closed the connection while {stage} was awaited{}", if *stage == Stage::Welcome { "; a server that is not Interlock does so when its key is another one" } else { "" })]
    ClosedDuringHandshake {
        /// What was awaited.
        stage: Stage,
    },
    /// The peer closed the connection in the middle of a frame.
    #[error("the peer closed the connection in the middle of a frame")]
    ClosedInsideFrame,
    /// The operation needs a session, and there is none yet.
    #[error("the handshake is not finished: {stage} is awaited")]
    NotReady {
        /// What is awaited.
        stage: Stage,
    },
    /// The operation belongs to the handshake, which is over.
    #[error("the handshake is over already; send a record or close the connection instead")]
    AlreadyReady,
    /// The engine was closed before: by an error, a refusal, or the peer's ERROR.
    #[error("the connection has ended already")]
    Closed,
}
