//! The journal: where log records wait on disk, encrypted, when the way to the store is shut for so long that memory fills
//! up, or when the process ends before they are stored.
//!
//! - **Order.** What is in the journal is older than what is in memory, and is sent first. Only when it is so full that it
//!   takes the levels that matter alone ([`LEVEL_SHARE_PERCENT`]), those overtake others.
//! - **Once.** A segment goes when each of its records is stored. A process that dies before sends them again; the store
//!   keeps one row for each id.
//! - **After a kill or a power cut** all that a spill has written is there: it is synced before memory forgets it. What a
//!   half-written spill leaves is named, counted and kept aside (`quarantine/`), and what is good before and behind any
//!   damage is sent.
//! - **Bounded**: [`BYTES_MAX`], [`SEGMENT_BYTES_MAX`], [`QUARANTINE_FILES_MAX`].
//! - **Nobody waits for it**: the [`keeper`] has a thread of its own. A disk that is full or read-only is a state with a
//!   name; records stay in memory then.
//!
//! | file | noun |
//! |---|---|
//! | `segment` | the bytes of a file: header, frames, what is damaged (pure) |
//! | `crc32c` | the sum that tells damage |
//! | `keeper` | the thread that spills and reads |

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use interlock_bus::{codec, crypto::KEY_BYTES};
use nix::libc::O_NOFOLLOW;
use zeroize::Zeroizing;

mod crc32c;
pub mod keeper;
mod segment;
#[cfg(test)]
mod tests;

pub use keeper::{Batch, JournalHandle, JournalPlace, JournalReport, Trouble};
pub use segment::{Bad, Fault};

use self::segment::{CONTENT_BYTES_MAX, Good, HEADER_BYTES, Sealer};
use crate::log_record::{Level, LogRecord};

/// Name of the journal's directory inside the data directory.
pub const DIRECTORY: &str = "journal";
/// Where damaged segments are kept, inside it.
pub const QUARANTINE: &str = "quarantine";
/// Bytes of all segments. Beyond, records stay in memory, which drops the least important first and says so.
pub const BYTES_MAX: u64 = 64 << 20;
/// Bytes after which a segment is ended. One spill may exceed it by itself.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 20;
/// Damaged segments kept for a look at them. The oldest goes first.
pub const QUARANTINE_FILES_MAX: usize = 8;
/// Bytes of a segment that are read: more than any spill writes, so that a file which somebody put there ends somewhere.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// How much of [`BYTES_MAX`] records of each level may fill, the least important first.
pub const LEVEL_SHARE_PERCENT: [u64; 5] = [50, 60, 80, 90, 100];

/// A segment that is complete.
#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    records: u64,
}

/// The segment that is being written.
struct Active {
    file: File,
    sealer: Sealer,
    number: u64,
    bytes: u64,
}

/// What a segment held.
pub(super) struct Content {
    pub(super) segment: u64,
    pub(super) records: Vec<Arc<LogRecord>>,
    pub(super) bad: Vec<Bad>,
}

/// The files. One owner at a time; the data directory's lock sees to that.
pub(super) struct Journal {
    directory: PathBuf,
    key: Zeroizing<[u8; KEY_BYTES]>,
    bytes_max: u64,
    /// The oldest first.
    segments: VecDeque<Segment>,
    active: Option<Active>,
    /// Segments of which something is damaged: kept when they are finished.
    damaged: Vec<u64>,
    last_number: u64,
}

impl Journal {
    /// The journal in `directory`, which need not exist: it is made by the first spill.
    pub(super) fn open(
        directory: &Path,
        key: Zeroizing<[u8; KEY_BYTES]>,
        bytes_max: u64,
    ) -> io::Result<Self> {
        let mut segments = VecDeque::new();
        let mut last_number = numbers(&directory.join(QUARANTINE))?.pop().unwrap_or_default();
        for number in numbers(directory)? {
            last_number = last_number.max(number);
            let path = path(directory, number);
            match read(&path) {
                Ok(file) => {
                    let records = segment::count(number, &file);
                    segments.push_back(Segment { number, bytes: file.len() as u64, records });
                }
                // The others are good.
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "a segment of the log's journal cannot be read; it is left as it is");
                }
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            key,
            bytes_max,
            segments,
            active: None,
            damaged: Vec::new(),
            last_number,
        })
    }

    /// Records whose frames are whole.
    pub(super) fn records(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |active| active.sealer.sealed());
        self.segments.iter().map(|segment| segment.records).sum::<u64>() + active
    }

    pub(super) fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |active| active.bytes);
        self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + active
    }

    /// Whether there is no file to read.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.active.is_none()
    }

    /// Damaged segments that are kept.
    pub(super) fn quarantined(&self) -> usize {
        numbers(&self.directory.join(QUARANTINE)).map_or(0, |kept| kept.len())
    }

    /// The least important level for which there is room; `None` if it is full.
    pub(super) fn takes(&self) -> Option<Level> {
        let bytes = self.bytes();
        let has_room =
            |level: &Level| bytes < self.bytes_max / 100 * LEVEL_SHARE_PERCENT[*level as usize - 1];
        Level::ALL.into_iter().find(has_room)
    }

    /// Writes, syncs and removes a page, to see whether the disk takes one.
    pub(super) fn probe(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join("probe");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .and_then(|mut file| file.write_all(&[0; 4096]).and_then(|()| file.sync_all()));
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    /// Writes `records` behind the others and syncs. After an error none of them is there.
    pub(super) fn append(&mut self, records: &[Arc<LogRecord>]) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|active| active.bytes >= SEGMENT_BYTES_MAX) {
            self.end_active();
        }
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.begin()?,
        };
        let mut bytes = Vec::new();
        for record in records {
            active.sealer.seal_onto(&self.key, &content(record), &mut bytes);
        }
        let written = active.file.write_all(&bytes).and_then(|()| active.file.sync_data());
        match written {
            Ok(()) => {
                active.bytes += bytes.len() as u64;
                self.active = Some(active);
                Ok(())
            }
            Err(error) => {
                let records = active.sealer.sealed() - records.len() as u64;
                // What cannot be cut off is found torn, and is ignored by its ids if it was whole.
                let _ = active.file.set_len(active.bytes);
                self.retire(&active, records);
                Err(error)
            }
        }
    }

    /// A new file with its header, its name synced.
    fn begin(&mut self) -> io::Result<Active> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let number = self.last_number + 1;
        let path = path(&self.directory, number);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&path)?;
        // Taken, whatever becomes of it.
        self.last_number = number;
        let sealer = Sealer::new(number);
        let begun = file.write_all(sealer.header()).and_then(|()| sync_directory(&self.directory));
        if let Err(error) = begun {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Active { file, sealer, number, bytes: HEADER_BYTES as u64 })
    }

    fn end_active(&mut self) {
        if let Some(active) = self.active.take() {
            let records = active.sealer.sealed();
            self.retire(&active, records);
        }
    }

    /// From now on a segment to be read; one without records goes.
    fn retire(&mut self, active: &Active, records: u64) {
        if records == 0 {
            let _ = fs::remove_file(path(&self.directory, active.number));
        } else {
            self.segments.push_back(Segment { number: active.number, bytes: active.bytes, records });
        }
    }

    /// The oldest segment that is not [finished](Self::finish); what is being written is ended for it. A file that cannot
    /// be read is left for the next start.
    pub(super) fn next(&mut self) -> Option<io::Result<Content>> {
        if self.segments.is_empty() {
            self.end_active();
        }
        let number = self.segments.front()?.number;
        let file = match read(&path(&self.directory, number)) {
            Ok(file) => file,
            Err(error) => {
                self.segments.pop_front();
                return Some(Err(error));
            }
        };
        let segment::Opened { good, mut bad } = segment::open(&self.key, number, &file);
        let mut records = Vec::with_capacity(good.len());
        for Good { offset, bytes, content } in good {
            match codec::from_json::<LogRecord>(&content) {
                Ok(record) => records.push(Arc::new(record)),
                Err(_) => bad.push(Bad { offset, bytes, fault: Fault::Unknown }),
            }
        }
        if self.damaged.contains(&number) {
            // It was told when it was read before.
            bad.clear();
        } else if !bad.is_empty() {
            self.damaged.push(number);
        }
        Some(Ok(Content { segment: number, records, bad }))
    }

    /// All records of this segment are stored: its file goes, or, if something of it is damaged, into quarantine.
    pub(super) fn finish(&mut self, number: u64) -> io::Result<()> {
        self.segments.retain(|segment| segment.number != number);
        let path = path(&self.directory, number);
        match self.damaged.iter().position(|damaged| *damaged == number) {
            Some(at) => {
                self.damaged.swap_remove(at);
                self.quarantine(&path, number)
            }
            None => fs::remove_file(path),
        }
    }

    fn quarantine(&self, path: &Path, number: u64) -> io::Result<()> {
        let kept = self.directory.join(QUARANTINE);
        DirBuilder::new().recursive(true).mode(0o700).create(&kept)?;
        let mut numbers = numbers(&kept)?;
        numbers.reverse();
        for old in numbers.iter().skip(QUARANTINE_FILES_MAX - 1) {
            fs::remove_file(self::path(&kept, *old))?;
        }
        fs::rename(path, self::path(&kept, number))
    }

    /// Where a segment is now.
    pub(super) fn path(&self, number: u64) -> PathBuf {
        path(&self.directory, number)
    }
}

/// A record as it is sealed. One that is too long for a frame loses its fields: its message is shorter.
fn content(record: &LogRecord) -> Zeroizing<Vec<u8>> {
    let json = |record: &LogRecord| {
        codec::to_json(record).map(|bytes| Zeroizing::new(bytes.to_vec())).unwrap_or_default()
    };
    let whole = json(record);
    if whole.len() <= CONTENT_BYTES_MAX {
        return whole;
    }
    let mut cut = LogRecord { fields: Vec::new(), spans: Vec::new(), ..record.clone() };
    cut.message.truncate(cut.message.floor_char_boundary(CONTENT_BYTES_MAX / 8));
    cut.fields.push(("cut_off".to_owned(), format!("{} bytes are more than the journal takes", whole.len())));
    json(&cut)
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.seg"))
}

/// The numbers of the segments in `directory`, rising; none if it does not exist.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
