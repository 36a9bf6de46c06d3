//! The fixed words of records: overflow policies, statuses, operations, each a byte on the wire.

/// What a subscription loses when its send queue is full. Named for what is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Overflow {
    /// The message that does not fit is dropped and counted. The default.
    #[default]
    DropNewest = 0,
    /// The oldest queued messages make room.
    DropOldest = 1,
    /// Only the last message of each topic is kept.
    LatestOnly = 2,
    /// The subscriber's session ends.
    Disconnect = 3,
    /// Publishers of the topic are held until there is room.
    Wait = 4,
}

impl Overflow {
    /// All policies, the default first.
    pub const ALL: [Self; 5] =
        [Self::DropNewest, Self::DropOldest, Self::LatestOnly, Self::Disconnect, Self::Wait];
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Status {
    /// The server sent its last part.
    Done = 0,
    /// The server says it failed: code and text are its own.
    Failed = 1,
    /// Nobody serves the topic.
    NoResponders = 2,
    /// The requester may not request this topic.
    Denied = 3,
    /// The deadline passed.
    TimedOut = 4,
    /// The server's session ended before the request did.
    ServerGone = 5,
    /// The requester cancelled it.
    Cancelled = 6,
    /// The server's or the requester's limit of requests or bytes is reached.
    Busy = 7,
}

/// What a `denied` record refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Operation {
    /// A publish; the reference is its sequence.
    Publish = 0,
    /// A subscribe; the reference is the subscription id.
    Subscribe = 1,
    /// A serve; the reference is the subscription id.
    Serve = 2,
    /// A request; the reference is the request id.
    Request = 3,
}

macro_rules! from_byte {
    ($type:ident: $($variant:ident),+) => {
        impl $type {
            pub(crate) fn from_byte(byte: u8) -> Option<Self> {
                [$(Self::$variant),+].into_iter().find(|value| *value as u8 == byte)
            }

            /// The name as printed by the tool and in control payloads.
            pub fn as_str(self) -> &'static str {
                // Kept in step with serde's snake_case by the test below.
                match self { $(Self::$variant => {
                    const NAME: &str = stringify!($variant);
                    snake(NAME)
                }),+ }
            }
        }
    };
}
from_byte!(Overflow: DropNewest, DropOldest, LatestOnly, Disconnect, Wait);
from_byte!(Status: Done, Failed, NoResponders, Denied, TimedOut, ServerGone, Cancelled, Busy);
from_byte!(Operation: Publish, Subscribe, Serve, Request);

fn snake(name: &'static str) -> &'static str {
    match name {
        "DropNewest" => "drop_newest",
        "DropOldest" => "drop_oldest",
        "LatestOnly" => "latest_only",
        "Disconnect" => "disconnect",
        "Wait" => "wait",
        "Done" => "done",
        "Failed" => "failed",
        "NoResponders" => "no_responders",
        "Denied" => "denied",
        "TimedOut" => "timed_out",
        "ServerGone" => "server_gone",
        "Cancelled" => "cancelled",
        "Busy" => "busy",
        "Publish" => "publish",
        "Subscribe" => "subscribe",
        "Serve" => "serve",
        "Request" => "request",
        other => other,
    }
}
