//! The native protocol: batches of records inside ZMTP messages. `bus/WIRE.md` describes every byte.

pub mod batch;
pub mod record;

pub use batch::{BatchReader, BatchWriter};
pub use record::{
    Block, CreditScope, Operation, Overflow, PublishParts, Record, RecordError, Status, SubscribeSpec,
    SubscriptionIds,
};

/// Major version of the protocol, as announced in `X-Interlock` and `hello`. Peers of different
/// major versions do not talk.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version: what a peer may leave out. The lower of both sides counts.
pub const VERSION_MINOR: u16 = 0;
