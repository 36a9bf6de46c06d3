//! Bounds of durable delivery: unit, reason, what happens.

use std::time::Duration;

/// The longest wait after the first attempt.
pub const RETRY_BASE: Duration = Duration::from_secs(30);

/// The longest wait between two attempts.
pub const RETRY_CAP: Duration = Duration::from_secs(3600);

/// Attempts after whose failure a delivery becomes a dead letter.
pub const ATTEMPTS_MAX: u32 = 10;

/// How often what is known of the storage is read anew, and consumers that are absent are tried.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// How long one attempt may take; then it counts as failed.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(60);

/// How long a consumer may be absent until what waits for it becomes dead letters.
pub const ABSENT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long is waited after a failure of the storage before it is asked again.
pub const STORAGE_PAUSE: Duration = Duration::from_secs(1);

/// How long what is in hand may take at a stop.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long the storage may take for its last step at a stop.
pub const LAST_STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one payload with its header. A larger message is refused as `too_large`.
pub const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Messages that are not finished. A further one meets the policy.
pub const PENDING_MAX: u64 = 10_000;

/// Open deliveries to one consumer that are known at a time; the rest is read when these are done.
pub const WINDOW: usize = 16_384;

/// Open deliveries that are read in one step while messages come: some milliseconds, for which others wait.
pub const READ: usize = 1024;

/// Messages on their way to one consumer.
pub const IN_FLIGHT_MESSAGES: usize = 32;

/// Bytes on their way to one consumer; at least one message.
pub const IN_FLIGHT_BYTES: u64 = 4 << 20;

/// Messages on their way to all consumers: some less than the broker takes from one session. Consumers share it evenly.
pub const IN_FLIGHT_ALL: usize = 3072;

/// Messages of one key that are leased together.
pub const RUN: usize = 32;

/// Puts in hand. Further ones wait in the broker's queue, which answers `busy` when it is full.
pub const PUTS_IN_HAND: usize = 1024;

/// Puts that wait for room under the policy `pause`. A further one is refused as `outbox_full`.
pub const PUTS_WAITING: usize = 256;

/// How long before the deadline of a put that waits for room it is refused at the latest, so that the refusal arrives.
pub const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// How long a publisher waits before it puts a message again that no outbox was there for: at first,
pub const PUT_PAUSE_MIN: Duration = Duration::from_millis(20);

/// and at most.
pub const PUT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Bytes of an ordering key.
pub const KEY_BYTES_MAX: usize = 255;

/// Bytes of the reason that is kept of a failed attempt. The rest is cut off.
pub const REASON_BYTES_MAX: usize = 1024;

/// Ids that a memory inbox remembers. The oldest is forgotten first.
pub const INBOX_IDS: usize = 65_536;

/// Consumers of one message.
pub const CONSUMERS_MAX: usize = 64;
