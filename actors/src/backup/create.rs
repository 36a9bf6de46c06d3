//! Making a backup.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, mpsc},
};

use interlock_bus::{
    crypto::{self, DIGEST_BYTES, PassphraseCost, secret_stream::Digester},
    keys::{KeyError, private_file},
};
use jiff::{Timestamp, tz::TimeZone};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK},
};
use zeroize::Zeroizing;

use super::{
    Installation,
    error::BackupError,
    header::{Header, Keys},
    limits,
    manifest::{Contents, Manifest, Part, PartKind, id_text},
    open::Opened,
    progress::{OF_CREATE, Phase, Teller, Watcher},
    sealed::{SealingWriter, read_full},
    workspace::{self, NewFile, Workspace},
};
use crate::{
    store::{DataKey, Passphrase, StoreError, snapshot},
    wipe::{WipedCounts, parent},
};

/// The name that the configuration has in a backup.
pub(super) const CONFIG_NAME: &str = "interlock.toml";
/// The lock of the key store, which is no part of it.
const LOCK_FILE: &str = ".lock";

/// What can be chosen about a new backup.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// What guessing the passphrase costs.
    pub cost: PassphraseCost,
    /// Bytes of content in a chunk.
    pub chunk_bytes: u32,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { cost: limits::COST, chunk_bytes: limits::NEW_CHUNK_BYTES }
    }
}

/// A backup that was made, read back and put in its place.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Created {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What is in it.
    pub contents: Contents,
    /// What became of the temporary files.
    pub wiped: WipedCounts,
    /// What the key store has besides, and is not in it: no plain files.
    pub left_out: Vec<String>,
}

/// The name of a backup that is made now.
pub fn default_name() -> String {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    format!("interlock-{}.ilbk", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// Makes a backup of `installation` at `target`, beside whoever uses it. Blocks for as long as the databases are large.
///
/// What was at `target` stays until the new file was written, synced, and read back whole.
///
/// # Errors
/// Nothing was changed then, and nothing is left behind.
pub fn create(
    installation: &Installation,
    key: &DataKey,
    passphrase: &Passphrase,
    target: &Path,
    options: CreateOptions,
    watcher: &mut Watcher<'_>,
) -> Result<Created, BackupError> {
    let mut teller = Teller::new(watcher, OF_CREATE);
    let outcome = run(installation, key, passphrase, target, options, &mut teller);
    teller.end(outcome)
}

/// A part on its way into the backup.
struct Source {
    part: Part,
    content: Content,
}

enum Content {
    File(PathBuf),
    Memory(Zeroizing<Vec<u8>>),
}

fn run(
    installation: &Installation,
    key: &DataKey,
    passphrase: &Passphrase,
    target: &Path,
    options: CreateOptions,
    teller: &mut Teller<'_, '_>,
) -> Result<Created, BackupError> {
    if !limits::CHUNK_BYTES.contains(&options.chunk_bytes) {
        return Err(BackupError::Chunk { bytes: options.chunk_bytes });
    }
    let database_bytes = database_bytes(installation)?;
    // What is live is many times as large as what is said of it: the small files fit into what is to spare.
    workspace::check_space(&[(&installation.root, database_bytes), (parent(target), database_bytes)])?;
    let salt = crypto::random();
    let keys = Keys::derive(passphrase, &salt, options.cost)?;
    workspace::sweep_new_files(parent(target));
    // First the place, so that one that cannot be written is known before the long work.
    let new = NewFile::beside(target)?;

    let workspace = Workspace::new(&installation.root, "backup")?;
    let snapshot_key = DataKey::one_time(&workspace.path().join("a snapshot"));
    let mut sources = snapshots(installation, key, &snapshot_key, &workspace, database_bytes, teller)?;
    let (small, seal, left_out) = small_files(installation)?;
    sources.extend(small);

    let created_ns = interlock_bus::envelope::now_ns();
    let database_id = crypto_id(key);
    let contents = Contents {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        created_ns,
        database_id: id_text(&database_id),
        seal,
        parts: sources.iter().map(|source| source.part.clone()).collect(),
    };
    let manifest = Manifest::new(contents.clone(), key.digits(), snapshot_key.digits());
    let table = manifest.encode();
    let (stream, head) = keys.sealer();
    let header = Header {
        cost: options.cost,
        salt,
        chunk_bytes: options.chunk_bytes,
        plain_bytes: manifest.plain_bytes(&table),
        created_ns,
        database_id,
        stream: head,
    };
    let head = header.encode(&keys);
    let mut writer = SealingWriter::begin(new.file(), new.path(), stream, &head, options.chunk_bytes)?;
    let digests = seal_all(&mut writer, &table, &sources, header.plain_bytes, teller)?;
    writer.finish()?;
    new.file().sync_all().map_err(BackupError::file(new.path(), "sync"))?;
    // Then reading it back asks the disk. Where the system does not follow, it asks memory.
    let _ = posix_fadvise(new.file().as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);

    read_back(&new, &header, &keys, &head, &contents, &digests, teller)?;
    teller.at(Phase::Finalizing, 0, 1)?;
    let bytes = header.file_bytes();
    new.place()?;
    // The backup is there whatever becomes of these.
    let wiped = workspace.close().unwrap_or(WipedCounts { failed: 1, ..WipedCounts::default() });
    Ok(Created { path: target.to_owned(), bytes, contents, wiped, left_out })
}

pub(super) fn crypto_id(key: &DataKey) -> super::DatabaseId {
    let derived = key.derive("database id");
    std::array::from_fn(|at| derived[at])
}

fn database_bytes(installation: &Installation) -> Result<u64, BackupError> {
    let main = installation.root.join(crate::store::DATABASE_FILE);
    if snapshot::bytes(&main)?.is_none() {
        return Err(StoreError::NotInitialised { path: main }.into());
    }
    let mut sum = 0;
    for file in snapshot::files() {
        sum += snapshot::bytes(&installation.root.join(file))?.unwrap_or(0);
    }
    Ok(sum)
}

/// Copies each database and judges the copy.
fn snapshots(
    installation: &Installation,
    key: &DataKey,
    snapshot_key: &DataKey,
    workspace: &Workspace,
    database_bytes: u64,
    teller: &mut Teller<'_, '_>,
) -> Result<Vec<Source>, BackupError> {
    let mut sources = Vec::new();
    let mut before = 0;
    for file in snapshot::files() {
        let live = installation.root.join(file);
        if snapshot::bytes(&live)?.is_none() {
            continue;
        }
        let path = workspace.path().join(file);
        drop(Workspace::create(&path)?);
        teller.at(Phase::Snapshot, before, database_bytes)?;
        let cancel = Arc::new(AtomicBool::new(false));
        let work = || {
            snapshot::take(&live, key, &path, snapshot_key, &cancel)?;
            snapshot::judge(&path, file, snapshot_key, snapshot::Depth::Quick, &live, &cancel)
        };
        let facts = watched(work, &cancel, || {
            let bytes = fs::metadata(&path).map_or(0, |about| about.len());
            teller.at(Phase::Snapshot, before + bytes, database_bytes)
        })?;
        let bytes = fs::metadata(&path).map_err(BackupError::file(&path, "look at"))?.len();
        before += bytes;
        let name = file.to_owned();
        let part = Part { kind: PartKind::Database, name, bytes, database: Some(facts) };
        sources.push(Source { part, content: Content::File(path) });
    }
    Ok(sources)
}

/// Runs what blocks for long on a thread of its own, and `look`s now and then; an error of `look` cancels the work.
pub(super) fn watched<T: Send>(
    work: impl FnOnce() -> Result<T, StoreError> + Send,
    cancel: &AtomicBool,
    mut look: impl FnMut() -> Result<(), BackupError>,
) -> Result<T, BackupError> {
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("backup-database".to_owned());
        // Joined at the end of the scope.
        let worker = thread
            .spawn_scoped(scope, move || {
                crate::log_transport::mark_thread();
                let outcome = work();
                // Dropped with the channel if nobody waits any more, which cannot be.
                let _ = done.send(());
                outcome
            })
            .map_err(BackupError::file("a thread", "start"))?;
        let mut stopped = None;
        // A worker that panicked ends the waiting too.
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(limits::TELL_EVERY) {
            if stopped.is_none()
                && let Err(error) = look()
            {
                cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                stopped = Some(error);
            }
        }
        let outcome = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match stopped {
            Some(error) => Err(error),
            None => Ok(outcome?),
        }
    })
}

/// Key store and configuration, as they are at one moment.
fn small_files(installation: &Installation) -> Result<(Vec<Source>, String, Vec<String>), BackupError> {
    let (mut sources, mut left_out) = (Vec::new(), Vec::new());
    let directory = installation.keys();
    // Both locks that writers of the key store take; readers of it need none.
    let lock = directory.join(LOCK_FILE);
    let held = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let held = held.map_err(BackupError::file(&lock, "open"))?;
    held.lock().map_err(BackupError::file(&lock, "lock"))?;
    let sealing = DataKey::hold(&directory)?;
    private_file::remove_abandoned(&directory);
    let seal = DataKey::wrap(&directory)?.map_or("none", |wrap| wrap.as_str()).to_owned();
    let entries = fs::read_dir(&directory).map_err(BackupError::file(&directory, "list"))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()
        .map_err(BackupError::file(&directory, "list"))?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_str();
        match name {
            Some(LOCK_FILE) => {}
            Some(name) if fs::symlink_metadata(&path).is_ok_and(|about| about.is_file()) => {
                let content = private_file::read(&path).map_err(of_key(&path))?;
                sources.push(in_memory(PartKind::Key, name, content));
            }
            _ => left_out.push(path.display().to_string()),
        }
        if sources.len() > limits::SMALL_FILES_MAX {
            let problem = format!("it has more than {} files", limits::SMALL_FILES_MAX);
            return Err(BackupError::Content { what: format!("`{}`", directory.display()), problem });
        }
    }
    drop((held, sealing));
    if let Some(config) = &installation.config {
        sources.push(in_memory(PartKind::Config, CONFIG_NAME, read_small(config)?));
    }
    Ok((sources, seal, left_out))
}

fn in_memory(kind: PartKind, name: &str, content: Zeroizing<Vec<u8>>) -> Source {
    let part = Part { kind, name: name.to_owned(), bytes: content.len() as u64, database: None };
    Source { part, content: Content::Memory(content) }
}

fn of_key(path: &Path) -> impl FnOnce(KeyError) -> BackupError {
    let path = path.to_owned();
    move |error| match error {
        KeyError::Io { source, .. } => BackupError::File { path, doing: "read", source },
        error => BackupError::Content { what: format!("`{}`", path.display()), problem: error.to_string() },
    }
}

/// A configuration file: anybody may read it, and it may be a link.
fn read_small(path: &Path) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_CLOEXEC).open(path);
    let file = file.map_err(BackupError::file(path, "read"))?;
    let about = file.metadata().map_err(BackupError::file(path, "look at"))?;
    if !about.is_file() || about.len() > limits::SMALL_FILE_BYTES_MAX {
        let problem = "it is no plain file of at most 1 MiB".to_owned();
        return Err(BackupError::Content { what: format!("`{}`", path.display()), problem });
    }
    let mut content = Zeroizing::new(Vec::with_capacity(about.len() as usize));
    let read = file.take(limits::SMALL_FILE_BYTES_MAX).read_to_end(&mut content);
    read.map(|_| content).map_err(BackupError::file(path, "read"))
}

/// Seals table and parts; returns the digest of each part.
fn seal_all(
    writer: &mut SealingWriter<&File>,
    table: &[u8],
    sources: &[Source],
    plain_bytes: u64,
    teller: &mut Teller<'_, '_>,
) -> Result<Vec<[u8; DIGEST_BYTES]>, BackupError> {
    let table_bytes = u32::try_from(table.len()).ok().filter(|bytes| *bytes <= limits::MANIFEST_BYTES_MAX);
    let table_bytes = table_bytes.ok_or_else(|| BackupError::Content {
        what: "the key store".to_owned(),
        problem: format!("its table of contents is longer than {} bytes", limits::MANIFEST_BYTES_MAX),
    })?;
    writer.push(&table_bytes.to_le_bytes())?;
    writer.push(table)?;
    let mut done = 4 + table.len() as u64;
    let mut digests = Vec::with_capacity(sources.len());
    let mut block = Zeroizing::new(vec![0; 1 << 20]);
    for source in sources {
        let mut digester = Digester::new();
        match &source.content {
            Content::Memory(content) => {
                digester.update(content);
                writer.push(content)?;
                done += content.len() as u64;
            }
            Content::File(path) => {
                let flags = O_NOFOLLOW | O_CLOEXEC;
                let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
                let mut file = file.map_err(BackupError::file(path, "read"))?;
                let mut left = source.part.bytes;
                while left > 0 {
                    let wanted = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let read = read_full(&mut file, &mut block[..wanted]);
                    if read.map_err(BackupError::file(path, "read"))? < wanted {
                        let problem = "it became shorter while it was read".to_owned();
                        return Err(BackupError::Content { what: format!("`{}`", path.display()), problem });
                    }
                    digester.update(&block[..wanted]);
                    writer.push(&block[..wanted])?;
                    left -= wanted as u64;
                    done += wanted as u64;
                    teller.at(Phase::Encrypting, done, plain_bytes)?;
                }
            }
        }
        let digest = digester.finish();
        writer.push(&digest)?;
        done += DIGEST_BYTES as u64;
        digests.push(digest);
    }
    teller.at(Phase::Encrypting, plain_bytes, plain_bytes)?;
    Ok(digests)
}

/// Opens what was written, from the disk, and compares it with what it should be.
fn read_back(
    new: &NewFile,
    header: &Header,
    keys: &Keys,
    head: &[u8],
    contents: &Contents,
    digests: &[[u8; DIGEST_BYTES]],
    teller: &mut Teller<'_, '_>,
) -> Result<(), BackupError> {
    let differs =
        |problem: &str| BackupError::ReadBack { path: new.path().to_owned(), problem: problem.to_owned() };
    let as_read_back = |error: BackupError| match error {
        error @ (BackupError::Cancelled | BackupError::File { .. }) => error,
        error => differs(&error.to_string()),
    };
    let (there, there_head) = Opened::header_of(new.path()).map_err(as_read_back)?;
    if there_head != head || there != *header {
        return Err(differs("its header"));
    }
    let mut opened = Opened::with_keys(new.path(), keys).map_err(as_read_back)?;
    if opened.manifest.public != *contents {
        return Err(differs("its table of contents"));
    }
    let plain_bytes = header.plain_bytes;
    let mut found = Vec::with_capacity(digests.len());
    let mut done = 0;
    for part in &contents.parts {
        let digest = opened.part(part, |piece| {
            done += piece.len() as u64;
            teller.at(Phase::Verifying, done, plain_bytes)
        });
        found.push(digest.map_err(as_read_back)?);
    }
    opened.finish().map_err(as_read_back)?;
    if found == digests { Ok(()) } else { Err(differs("the digest of a part")) }
}
