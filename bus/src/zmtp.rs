//! ZMTP 3.1 with the CURVE mechanism, both roles, without any input or output of its own.
//!
//! The caller owns the socket and the clock; [`Engine`] turns bytes into events and messages into
//! bytes. Sources: ZMTP RFC 23 and 37, CurveZMQ RFC 26, Z85 RFC 32.
//!
//! | file | what is in it |
//! |---|---|
//! | `error.rs` | [`ZmtpError`], one variant per thing a caller can act on; [`Stage`] |
//! | `socket_type.rs` | [`SocketType`] and its complement |
//! | `metadata.rs` | [`Metadata`]: the properties in INITIATE and READY, bounded |
//! | `greeting.rs` | the first 64 bytes |
//! | `frame.rs` | the frame around everything after the greeting |
//! | `command.rs` | [`Command`]: SUBSCRIBE, CANCEL, PING, PONG, ERROR |
//! | `curve.rs`, `curve/` | the handshake: layouts, then server and client |
//! | `message_box.rs` | one MESSAGE after the handshake |
//! | `config.rs` | [`ServerConfig`], [`ClientConfig`] |
//! | `engine.rs` | [`Engine`]: the state machine over all of it |

mod command;
mod config;
mod curve;
mod draft;
mod engine;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod greeting;
mod message_box;
mod metadata;
mod socket_type;

pub use command::{Command, Refusal};
pub use config::{ClientConfig, ServerConfig};
pub use draft::Draft;
pub use engine::{Engine, EngineEvent, OpenedFrame};
pub use error::{Stage, ZmtpError};
pub use frame::FrameFlags;
pub use greeting::Version;
pub use metadata::{Metadata, MetadataError, X_INTERLOCK};
pub use socket_type::SocketType;

#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod golden;
