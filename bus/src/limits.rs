//! Every limit of the bus: unit, reason, and what happens when it is hit.

use std::time::Duration;

/// Bytes of a topic name or filter. Longer ones are refused with [`TopicError::TooLong`](crate::topic::TopicError).
/// 255 keeps a name inside one byte of length on any fabric.
pub const TOPIC_BYTES_MAX: usize = 255;

/// Bytes of one payload. A larger publish or request is refused before anything is queued.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Bytes of one header. It is opaque to the broker, so only its size can be judged.
pub const HEADER_BYTES_MAX: usize = 65_535;

/// Bytes a batch aims at: sealing runs near its top speed from 16 KiB on, and a batch this size
/// fits the socket buffers. One larger record makes a batch of its own.
pub const BATCH_BYTES: usize = 64 << 10;

/// Bytes of the largest record on the wire. A larger one travels as fragments of this size, so
/// that a ping or a cancel never waits behind it.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

/// Bytes of a reassembled record: the largest payload with its header, topic and prefix.
pub const ASSEMBLED_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX + TOPIC_BYTES_MAX + 64;

/// Bytes of one ZMTP frame from a native session. A larger one ends the session with `frame_too_large`.
pub const NATIVE_FRAME_BYTES_MAX: usize = BATCH_BYTES + RECORD_BYTES_MAX + 64;

/// Bytes of one ZMTP frame from a stock session (payload plus the CURVE box).
pub const STOCK_FRAME_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 1024;

/// Frames of one stock message. More end the session: nothing sane sends them.
pub const STOCK_FRAMES_MAX: usize = 64;

/// Bytes of the frames that a stock requester wants echoed (RFC 28): a dozen routing ids of at most 255 bytes.
/// They are kept until the answer has left, so more of them end the session.
pub const STOCK_ENVELOPE_BYTES_MAX: usize = 4 << 10;

/// Default bytes queued towards one subscription before its overflow policy applies.
pub const SEND_QUEUE_BYTES: usize = 16 << 20;

/// Default messages queued towards one subscription before its overflow policy applies.
pub const SEND_QUEUE_MESSAGES: usize = 65_536;

/// Places in one send queue where messages are missing. Losses at a further place are told of at the last one before it.
pub const LOSS_PLACES_MAX: usize = 1024;

/// Bytes queued towards a subscription with the policy `wait` at which its publishers are held; they go
/// on when half of it is left. Less than its queue takes, because what circulates should not leave the
/// processor's cache; a few of the largest common messages, because holding costs a round trip.
pub const HOLD_BYTES: usize = 4 << 20;

/// Bytes sent to one subscription and not yet credited. Beyond, messages stay in the send queue,
/// where the overflow policy can see them.
pub const CREDIT_WINDOW_BYTES: u64 = 4 << 20;

/// Bytes of control records (answers, pings, gaps) waiting for one session. A peer that makes
/// the broker answer and never reads is disconnected with `control_queue_full`.
pub const CONTROL_QUEUE_BYTES: usize = 4 << 20;

/// Bytes of replies waiting for one requester. A further reply ends its request with `slow_consumer`.
pub const REPLY_QUEUE_BYTES: usize = 128 << 20;

/// Reply parts a server may send ahead of the requester's credit, for each request.
pub const REPLY_WINDOW: u32 = 64;

/// Requests in flight for one requester session. A further one is answered `busy` at once.
pub const REQUESTS_PER_SESSION_MAX: usize = 4096;

/// Ends of requests waiting for one requester session. A peer that asks on and does not read the
/// answers is disconnected with `control_queue_full`.
pub const ENDS_WAITING_MAX: usize = 2 * REQUESTS_PER_SESSION_MAX;

/// Subscriptions (and served filters) of one session. A further one is denied with `too_many`.
pub const SUBSCRIPTIONS_PER_SESSION_MAX: usize = 4096;

/// Sessions of one broker, half-open ones included. Beyond, accepting waits.
pub const SESSIONS_MAX: usize = 8192;

/// Connections the system holds until they are accepted, up to its own `net.core.somaxconn`. A client beyond
/// that tries again after a second, so a thousand that start at once need more than the usual 128.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Connections that have not finished their handshake. Beyond, accepting waits until one ends.
pub const HALF_OPEN_MAX: usize = 1024;

/// How long a handshake may take while others wait for its place. Beyond, the oldest one is ended as
/// `half_open_evicted`, so that connections that are held half open for ever keep nobody out.
pub const HALF_OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// File descriptors of the process that are no connection's: the store, logs, other listeners. The
/// rest of its limit on open files bounds the connections, if that is less than [`SESSIONS_MAX`].
pub const DESCRIPTORS_RESERVED: usize = 256;

/// How long a connection may take to finish its handshake. Then it is closed as `handshake_timeout`.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a frame may take from its first byte to its last; never applies to silence.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a session may take nothing of what is waiting in its socket before it counts as gone.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a session may be silent before the broker pings it.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long a pinged session may stay silent before it counts as gone.
pub const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers to pings that wait for one peer's socket. One that pings on and does not read is
/// disconnected as `control_queue_full`.
pub const PONGS_UNREAD_MAX: u32 = 1024;

/// How long a session of a key that has ended must bring nothing until it is ended: longer than bytes of this machine
/// are on their way.
pub const ENDED_KEY_QUIET: Duration = Duration::from_millis(20);

/// How long such a session may go on bringing bytes; then it is ended as one of somebody else who has the key.
pub const ENDED_KEY_GRACE: Duration = Duration::from_secs(1);

/// How long the peer of a refused or ended connection has to take the last words and close.
pub const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that wait so. Beyond, they are closed at once, and their last words may be lost.
pub const LINGERING_MAX: usize = 256;

/// How long a broker that stops waits for its peers to take the goodbye.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// Bytes the broker reads from one session before it looks at the next, so that a flood starves nobody.
pub const READ_TURN_BYTES: usize = 256 << 10;

/// Sealed bytes prepared for one socket ahead of the kernel.
pub const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Rows of the drop ledger. Beyond, those that were idle longest are folded into the row `other`; as many more are kept if all were
/// in use a moment ago.
pub const LEDGER_ROWS_MAX: usize = 16_384;

/// Topics with statistics of their own. Those beyond share the row `(other)`.
pub const TOPICS_TRACKED_MAX: usize = 16_384;

/// Bytes that statistics of topics take in all: [`STATISTICS_ROWS_BYTES_MAX`] and [`HISTORY_BYTES`], and what they are
/// rounded up to. However many topics there are, observing them costs no more.
pub const STATISTICS_BYTES_MAX: usize = 16 << 20;

/// Bytes of rows and names of topics. A topic that does not fit shares the row `(other)`.
pub const STATISTICS_ROWS_BYTES_MAX: usize = 7 << 20;

/// Seconds of the past whose traffic is kept for every topic.
pub const HISTORY_SECONDS: u64 = 3600;

/// Bytes that these seconds may take, 16 for each topic and second with messages: an hour of 145 topics that never rest, or
/// of many more that do. Beyond, the oldest are forgotten, for all topics alike, and answers say from when on they are complete.
pub const HISTORY_BYTES: usize = 8 << 20;

/// Rows of one answer about the past. The newest are given.
pub const HISTORY_ROWS_ANSWERED_MAX: usize = 20_000;

/// Retained values of a broker, in bytes, with their topics and headers: room for one of the largest payload, and as much
/// for all others. A value that does not fit is delivered and not retained; its publisher is told, and `$sys/retained_full` says so.
pub const RETAINED_BYTES_MAX: usize = 2 * PAYLOAD_BYTES_MAX;

/// What a retained value counts for beside its own bytes: its place in the table, so that many small values are bounded too.
pub const RETAINED_VALUE_BYTES: usize = 256;

/// Routes a session keeps to save looking up a topic for each message. The next one empties the cache.
pub const ROUTES_CACHED_MAX: usize = 4096;

/// Subscribers those routes lead to, counted for each topic: some 4 MiB.
pub const ROUTE_TARGETS_CACHED_MAX: usize = 65_536;

/// Refusals the broker remembers for `bus auth`. The oldest is forgotten first.
pub const REFUSALS_KEPT: usize = 1000;

/// Events the broker remembers for `bus events`. The oldest is forgotten first.
pub const EVENTS_KEPT: usize = 1000;

/// Bytes of a will: prefix, topic, header and payload. A larger one is denied with `too_large`.
pub const WILL_BYTES_MAX: usize = 64 << 10;

/// Commands of this process (attach a client, stop) that may wait for the broker's thread. Who finds it full tries again.
pub const LOCAL_COMMANDS_MAX: usize = 1024;

/// Records that an attached client holds for the broker's thread, beside [`OUTGOING_BYTES`]. Beyond, `publish` answers `Full`.
pub const LOCAL_RECORDS_MAX: usize = 65_536;

/// Bytes of a payload up to which it is copied between the broker and the clients in its own process. The bytes of a larger
/// one are shared; but a message of one's own for each few bytes costs more than their copy.
pub const LOCAL_COPY_BYTES_MAX: usize = 1024;

/// Bytes a client holds for the broker before `publish` answers `Full`.
pub const OUTGOING_BYTES: usize = 8 << 20;

/// Bytes that one publisher can have on its way when it is told to hold: [`OUTGOING_BYTES`] in its queue, the rest in the
/// sockets. A queue with the policy `wait` takes so much beyond its bound for each publisher it holds; a publisher
/// that goes on all the same is then refused, and the subscriber gets a gap.
pub const OVERRUN_BYTES: usize = 2 * OUTGOING_BYTES;

/// How long `Client::connect` waits for `Ready` unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request waits for its end unless told otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Messages a gated publisher holds until they were taken. A further one is refused, or drops the oldest.
pub const GATE_MESSAGES: usize = 65_536;

/// Bytes a gated publisher holds, counted like [`GATE_MESSAGES`].
pub const GATE_BYTES: usize = 16 << 20;

/// Bytes that a held message counts beyond its payload.
pub const GATE_MESSAGE_BYTES: usize = 256;

/// Messages a gated publisher sends ahead of what is known to be taken: a fraction of
/// [`SEND_QUEUE_MESSAGES`], so that a gate alone never fills a queue. The rest is held.
pub const GATE_WINDOW_MESSAGES: usize = 4096;

/// The same in bytes; at least one message is sent.
pub const GATE_WINDOW_BYTES: usize = 2 << 20;

/// Gated streams a consumer remembers. The one that is longest ago is forgotten first.
pub const STREAMS_REMEMBERED: usize = 4096;

/// Bytes of a question to the broker about readiness, and of a gate's report. A longer one fails.
pub const QUESTION_BYTES_MAX: usize = 8 << 10;

/// Watches of receivers and reports of gates that a broker holds. A further one is answered `busy`.
pub const QUESTIONS_HELD_MAX: usize = 4096;

/// Bytes of the metadata in a handshake, sent before authorisation.
pub const METADATA_BYTES_MAX: usize = 8 << 10;
