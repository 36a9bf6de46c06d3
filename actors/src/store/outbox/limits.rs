//! Every limit of the outbox on disk: unit, reason, and what happens when it is hit.

use std::time::Duration;

/// Messages that may be unfinished unless configured otherwise. A further one is refused, or takes the oldest one's place.
pub const PENDING_MAX: u64 = 10_000;

/// Bytes of unfinished messages, dead letters included, unless configured otherwise. Above it a message is refused.
pub const BYTES_MAX: u64 = 1 << 30;

/// Bytes of the disk that are left alone unless configured otherwise. Below it a message is refused.
pub const DISK_FLOOR: u64 = 500 << 20;

/// Age of finished messages that are remembered unless configured otherwise. Older ones are forgotten in small batches.
pub const KEEP_FINISHED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Finished messages that are remembered unless configured otherwise. The oldest beyond are forgotten in small batches.
pub const KEEP_FINISHED_MAX: u64 = 100_000;

/// Messages forgotten in one transaction, so that forgetting never holds up anybody for long.
pub(super) const FORGET_BATCH: u64 = 200;

/// Messages accepted between two looks at what is to be forgotten: half a batch, so that forgetting catches up.
pub(super) const FORGET_EVERY: usize = 100;

/// Longest time between two looks at what is to be forgotten: age comes without anybody doing anything.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Characters of a reason that are kept. The rest is cut.
pub(super) const REASON_CHARS_MAX: usize = 500;

/// Failed attempts of one delivery that are kept, those after a retry by hand included. Earlier ones are forgotten.
pub(super) const ATTEMPTS_KEPT: i64 = 100;

/// Commits after which what they wrote is moved into the database, beside the writer. Some hundred pages: a checkpoint of them
/// takes milliseconds, and the writer never comes to its own, every thousand pages, for which whoever waits for a commit
/// would wait 30 ms.
pub const CHECKPOINT_COMMITS: usize = 64;
/// Rows after which the same is done.
pub const CHECKPOINT_ROWS: usize = 1024;
