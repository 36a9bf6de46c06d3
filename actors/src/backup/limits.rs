//! Every limit of backups: unit, reason, and what happens when it is hit.

use std::{ops::RangeInclusive, time::Duration};

use interlock_bus::crypto::PassphraseCost;

/// Passes of Argon2id. Fewer would be a downgrade, more an occupation; a file that asks for others is refused.
pub const PASSES: RangeInclusive<u32> = 2..=10;

/// Memory of Argon2id in KiB: 19 MiB (OWASP's least for two passes) to 1 GiB. A file that asks for others is refused.
pub const MEMORY_KIB: RangeInclusive<u32> = 19 << 10..=1 << 20;

/// What guessing the passphrase of a new backup costs: 128 MiB, three passes, 0.4 s on a machine of 2026. More than for the data
/// key, because a backup lies where others have it.
pub const COST: PassphraseCost = PassphraseCost { passes: 3, memory_kib: 128 << 10 };

/// Bytes of content in a chunk. A file that asks for others is refused before anything is allocated.
pub const CHUNK_BYTES: RangeInclusive<u32> = 64 << 10..=4 << 20;

/// Bytes of content in a chunk of a new backup.
pub const NEW_CHUNK_BYTES: u32 = 1 << 20;

/// Bytes of the table of contents. A longer one is refused: it is held in memory.
pub const MANIFEST_BYTES_MAX: u32 = 16 << 20;

/// Files beside the databases, in one backup. More are refused.
pub const SMALL_FILES_MAX: usize = 100_000;

/// Bytes of one of them: they are held in memory while their directory is locked.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// How often progress is told while nothing else happens.
pub const TELL_EVERY: Duration = Duration::from_millis(250);

/// Free bytes that are asked for, for each byte of the databases: what is written, and half of it to spare.
pub const SPACE_FACTOR: (u64, u64) = (3, 2);

/// Waits between tries to get a database alone; then it is `InUse`. Each with up to a tenth of jitter, 5.5 s in all.
pub const ALONE_WAITS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1500),
    Duration::from_millis(2000),
];
