//! The way of a log record from the program to the store: layer, buffer, gate, drain.
//!
//! ```text
//! tracing event -> layer -> buffer ----- drain ----> logs/<component>/<level> -> log consumer -> store
//!                    |       (bounded)     ^  |                                      ^
//!        own events  |                   gate |------- confirm: "are these stored?" -|
//!                    v
//!              standard error (bounded)
//! ```
//!
//! **Nothing is lost when the consumer, the broker or this component dies**, because a record leaves
//! the buffer only when the consumer has answered that it is committed:
//!
//! 1. The [`drain`] takes a window of records and publishes each on its topic, in order; the last one
//!    acknowledged, so that all are in the consumer's queue.
//! 2. It asks the consumer to confirm the ids of the window. The consumer answers after its commit,
//!    naming what it has not seen.
//! 3. Confirmed records leave the buffer, unconfirmed ones are sent again. The store keeps one row for
//!    each id, so sending twice is harmless.
//!
//! Considered and left: acknowledged publishes alone (they end in the consumer's queue, which dies
//! with it) and records as requests (nobody could watch `logs/#` with the tool).
//!
//! The [`gate`] says when to send: after a probe came back through the consumer, not before. The
//! [`buffer`] belongs to the process, not to the component: it survives its restarts.

pub mod buffer;
pub mod drain;
pub mod gate;
pub mod layer;
mod path;
pub mod sink;
#[cfg(test)]
mod tests;

pub use buffer::LogBuffer;
pub use drain::{Drain, DrainError, DrainReport};
pub use layer::{Identity, LogLayer};
pub(crate) use path::OnLogPath;
pub use path::{is_marked, mark_thread};
pub use sink::Sink;
