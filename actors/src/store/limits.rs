//! Every limit of the store: unit, reason, and what happens when it is hit.

use std::time::Duration;

/// How long SQLite itself waits for another process's lock. Then the statement is `Busy`.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(10_000);

/// How long whoever needs the database alone waits for others to close it. Then it is `InUse`.
pub const ALONE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the store goes on trying after `Busy`. Then the caller is told so.
pub const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// Pause of a command that found the database locked for as long as [`BUSY_TIMEOUT`], before it tries again.
pub const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// How often a store that could not write tries whether it can again: nobody tells of a full disk's end.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Jobs that may wait for the writer. A further one is refused with `QueueFull` and given back.
pub const QUEUE_JOBS: usize = 1024;

/// Jobs that share one transaction. More wait for the next one.
pub const GROUP_JOBS_MAX: usize = 256;

/// Jobs that are expected together from which on a transaction waits for them. A sync takes longer than so many jobs.
pub const GATHER_FROM: usize = 32;

/// The longest time that it waits: less than the transaction itself takes with so many jobs.
pub const GATHER_TIME: Duration = Duration::from_millis(1);

/// Time between two looks at how many have come.
pub const GATHER_STEP: Duration = Duration::from_micros(200);

/// Reads that may wait for a reading thread. A further one is refused with `QueueFull`.
pub const QUEUE_READS: usize = 256;

/// Threads that read for asynchronous callers, each with a connection of its own.
pub const READ_THREADS: usize = 2;

/// How long one question to the database may take. Then it is cut: a reader keeps the write-ahead log from beginning anew.
pub const READ_LIMIT: Duration = Duration::from_secs(30);

/// Steps of SQLite's machine between two looks at the clock, about a millisecond.
pub const READ_STEPS: i32 = 20_000;

/// Bytes to which the write-ahead log is cut when it begins anew.
pub const WAL_BYTES: u64 = 16 << 20;

/// Log records kept unless configured otherwise. The oldest beyond are deleted in small batches.
pub const LOG_ROWS_MAX: u64 = 1_000_000;

/// Bytes of log records kept unless configured otherwise, index included. The oldest beyond are deleted in small batches.
pub const LOG_BYTES_MAX: u64 = 2 << 30;

/// Age of log records kept unless configured otherwise. Older ones are deleted in small batches.
pub const LOG_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Log records deleted in one transaction, so that trimming never holds up writers for long.
pub const TRIM_BATCH_ROWS: usize = 1000;

/// Log records appended between two looks at what must be trimmed. Half a batch: trimming catches up.
pub const TRIM_EVERY_ROWS: usize = 500;

/// Longest time between two looks at what must be trimmed: age comes without any record being appended.
pub const TRIM_EVERY: Duration = Duration::from_secs(60);

/// Log records that are not indexed at which an idle writer indexes them: a block. Fewer are looked at one by one by each
/// query, which takes some milliseconds.
pub const INDEX_AT_ROWS: usize = 1024;

/// Time without a job after which the writer begins with work of its own: between two batches of a stream it would make
/// the second one wait.
pub const QUIET: Duration = Duration::from_millis(5);

/// Log records that may be not indexed while jobs come. Beyond, each batch waits until it is fewer: a flood is stored as
/// fast as a table takes it at first, and then as fast as it can be indexed. A query looks at so many one by one, some
/// tenths of a second.
pub const INDEX_LAG_ROWS_MAX: usize = 262_144;

/// Bytes of log records indexed in one transaction, so that long records do not hold up writers for long.
pub const INDEX_STEP_BYTES: i64 = 4 << 20;

/// What a log record is taken to need before there is a mean.
pub const LOG_ROW_BYTES: i64 = 400;

/// Log records that one query looks at in vain, some seconds' work. Then it returns what it has and says that there may
/// be more. The index keeps it from happening but where it cannot help: with regular expressions.
pub const SCAN_ROWS_MAX: usize = 1_000_000;

/// Memory for pages of a connection that reads, in KiB: the longest lists of the index of a million records.
pub const READER_CACHE_KIB: u32 = 16_384;

/// Memory for pages of the connection that writes, in KiB: the index is merged in memory, ids are looked up there.
pub const WRITER_CACHE_KIB: u32 = 8_192;

/// Statements that a connection keeps compiled: each part of the index has its own.
pub const STATEMENTS_KEPT: usize = 64;

/// Rows that one query returns at most, whatever it asks for.
pub const QUERY_ROWS_MAX: usize = 100_000;

/// Bytes of one conversation message. A longer one is `Rejected` by SQLite only at a gigabyte, so we refuse first.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
