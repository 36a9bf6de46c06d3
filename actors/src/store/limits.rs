//! Every limit of the store: unit, reason, and what happens when it is hit.

use std::time::Duration;

/// How long SQLite itself waits for another process's lock. Then the statement is `Busy`.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(10_000);

/// How long the store goes on trying after `Busy`. Then the caller is told so.
pub const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// How often a store that could not write tries whether it can again: nobody tells of a full disk's end.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Jobs that may wait for the writer. A further one is refused with `QueueFull` and given back.
pub const QUEUE_JOBS: usize = 1024;

/// Jobs that share one transaction. More wait for the next one.
pub const GROUP_JOBS_MAX: usize = 256;

/// Reads that may wait for a reading thread. A further one is refused with `QueueFull`.
pub const QUEUE_READS: usize = 256;

/// Threads that read for asynchronous callers, each with a connection of its own.
pub const READ_THREADS: usize = 2;

/// Log records kept unless configured otherwise. The oldest beyond are deleted in small batches.
pub const LOG_ROWS_MAX: u64 = 1_000_000;

/// Age of log records kept unless configured otherwise. Older ones are deleted in small batches.
pub const LOG_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Log records deleted in one transaction, so that trimming never holds up writers for long.
pub const TRIM_BATCH_ROWS: usize = 1000;

/// Log records appended between two looks at what must be trimmed. Half a batch: trimming catches up.
pub const TRIM_EVERY_ROWS: usize = 500;

/// Rows that one query returns at most, whatever it asks for.
pub const QUERY_ROWS_MAX: usize = 100_000;

/// Bytes of one conversation message. A longer one is `Rejected` by SQLite only at a gigabyte, so we refuse first.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
