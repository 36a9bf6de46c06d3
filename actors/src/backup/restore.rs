//! Restoring: everything is verified in a place of its own before anything that is live is touched.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use interlock_bus::{KeyStore, crypto::PassphraseCost};
use jiff::{Timestamp, tz::TimeZone};

use super::{
    Installation,
    create::{crypto_id, watched},
    error::BackupError,
    exchange::{Exchange, Item, Kind, beside, hold_alone},
    manifest::{Contents, PartKind, id_text},
    open::Opened,
    progress::{OF_RESTORE, Phase, Teller, Watcher},
    workspace::{self, Workspace},
};
use crate::{
    log_transport::journal,
    store::{
        DataKey, KeyWrap, Passphrase, StoreError,
        key::{self, KEY_FILE, NewWrap},
        snapshot,
    },
    wipe::{self, parent},
};

/// Name of the key store in the data directory, and in the staging directory.
const KEYS: &str = "keys";

/// What the names have in them under which a restore keeps what was live before.
pub const KEPT_MARK: &str = ".pre-restore-";

/// What can be chosen about a restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// A data key that was sealed under a passphrase stays sealed under that one. Otherwise the passphrase of the backup opens it
    /// afterwards, so that the file and its passphrase are all that is needed.
    pub keep_seal: bool,
    /// The configuration is left as it is.
    pub leave_config: bool,
    /// What was live before is wiped once the new one was opened.
    pub discard_old: bool,
}

/// What a restore has done.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Restored {
    /// The backup.
    pub path: PathBuf,
    /// What was in it.
    pub contents: Contents,
    /// What the data key is sealed under now: `keystore` or `passphrase`.
    pub seal: &'static str,
    /// Whether that is the passphrase of the backup.
    pub sealed_anew: bool,
    /// Where the configuration is now, if it was restored.
    pub config: Option<PathBuf>,
    /// Where what was live before is kept; nothing if there was nothing, or if it was wiped.
    pub kept: Vec<PathBuf>,
}

/// Does everything that a restore does before it touches what is live, in a place that is wiped afterwards.
///
/// # Errors
/// Those that a restore would end with.
pub fn drill(
    installation: &Installation,
    path: &Path,
    passphrase: &Passphrase,
    watcher: &mut Watcher<'_>,
) -> Result<Contents, BackupError> {
    let mut teller = Teller::new(watcher, OF_RESTORE);
    let staged = stage(installation, path, passphrase, RestoreOptions::default(), &mut teller);
    let outcome = staged.and_then(|staged| {
        teller.at(Phase::Finalizing, 0, 1)?;
        // Once more as everybody opens it, with the key as it will lie on the disk.
        for file in &staged.databases {
            snapshot::open_once(&staged.workspace.path().join(file), &staged.key)?;
        }
        staged.workspace.close()?;
        Ok(staged.contents)
    });
    teller.end(outcome)
}

/// Replaces what is live by what is in the backup at `path`. For a caller who has made sure that no runtime works on the data
/// directory, and keeps it so. Killed at any point, it leaves the old or the new installation; the next command finishes it.
///
/// # Errors
/// What is wrong with the backup; or somebody has a database open (`InUse`). Nothing that is live was touched then.
pub fn restore(
    installation: &Installation,
    path: &Path,
    passphrase: &Passphrase,
    options: RestoreOptions,
    watcher: &mut Watcher<'_>,
) -> Result<Restored, BackupError> {
    let mut teller = Teller::new(watcher, OF_RESTORE);
    let staged = stage(installation, path, passphrase, options, &mut teller);
    let outcome = staged.and_then(|staged| {
        teller.at(Phase::Finalizing, 0, 1)?;
        take_over(installation, path, options, staged)
    });
    teller.end(outcome)
}

/// A restored installation in a place of its own: complete, checked, and on the disk.
struct Staged {
    workspace: Workspace,
    contents: Contents,
    databases: Vec<String>,
    key: DataKey,
    seal: KeyWrap,
    sealed_anew: bool,
    /// Content of the configuration.
    config: Option<PathBuf>,
}

fn stage(
    installation: &Installation,
    path: &Path,
    passphrase: &Passphrase,
    options: RestoreOptions,
    teller: &mut Teller<'_, '_>,
) -> Result<Staged, BackupError> {
    let mut opened = Opened::new(path, passphrase)?;
    workspace::check_space(&[(&installation.root, opened.header.plain_bytes)])?;
    let workspace = Workspace::new(&installation.root, "restore")?;
    let contents = opened.manifest.public.clone();
    let keys = workspace.path().join(KEYS);
    DirBuilder::new().mode(0o700).create(&keys).map_err(BackupError::file(&keys, "create"))?;

    let all = opened.header.plain_bytes;
    let (mut databases, mut config, mut done) = (Vec::new(), None, 0);
    for part in &contents.parts {
        let target = match part.kind {
            PartKind::Database => workspace.path().join(&part.name),
            PartKind::Key => keys.join(&part.name),
            PartKind::Config => workspace.path().join("config"),
        };
        let mut file = Workspace::create(&target)?;
        opened.part(part, |piece| {
            done += piece.len() as u64;
            file.write_all(piece).map_err(BackupError::file(&target, "write"))?;
            teller.at(Phase::Verifying, done, all)
        })?;
        match part.kind {
            // Those are changed again, and synced then.
            PartKind::Database => databases.push(part.name.clone()),
            PartKind::Key => file.sync_all().map_err(BackupError::file(&target, "sync"))?,
            PartKind::Config => config = Some(target),
        }
    }
    let unfit = |what: &str, problem: &str| BackupError::Content {
        what: format!("{what} of `{}`", path.display()),
        problem: problem.to_owned(),
    };
    let digits = |digits: &str, place: &Path| DataKey::from_digits(digits, place);
    let snapshot_key = digits(&opened.manifest.snapshot_key, workspace.path());
    let snapshot_key = snapshot_key.ok_or_else(|| unfit("the table of contents", "its keys are none"))?;
    let mut key = digits(&opened.manifest.data_key, &keys.join(KEY_FILE))
        .ok_or_else(|| unfit("the table of contents", "its keys are none"))?;
    if contents.database_id != id_text(&crypto_id(&key)) {
        return Err(unfit("the data key", "it is not that of these databases"));
    }
    // Nothing of the file is left to be read: only now is it known to be whole.
    opened.finish()?;

    prepare(&workspace, &databases, path, &snapshot_key, &key, &contents, teller)?;
    let (seal, sealed_anew) = seal(&mut key, &keys, passphrase, options)
        .map_err(|error| unfit("the key store", &error.to_string()))?;
    if keys.join("broker.toml").exists() {
        KeyStore::open(&keys)
            .and_then(|store| store.registry().map(drop))
            .map_err(|error| unfit("the key store", &error.to_string()))?;
    }
    for directory in [&keys, workspace.path()] {
        wipe::sync_directory(directory).map_err(BackupError::file(directory, "sync"))?;
    }
    Ok(Staged { workspace, contents, databases, key, seal, sealed_anew, config })
}

/// Judges each database and brings it under the data key.
fn prepare(
    workspace: &Workspace,
    databases: &[String],
    path: &Path,
    snapshot_key: &DataKey,
    key: &DataKey,
    contents: &Contents,
    teller: &mut Teller<'_, '_>,
) -> Result<(), BackupError> {
    let all = contents.database_bytes() * 2;
    let mut done = 0;
    for file in databases {
        let staged = workspace.path().join(file);
        let label = PathBuf::from(format!("{}:{file}", path.display()));
        let bytes = fs::metadata(&staged).map_or(0, |about| about.len());
        let cancel = Arc::new(AtomicBool::new(false));
        teller.at(Phase::Preparing, done, all)?;
        let facts = watched(
            || snapshot::judge(&staged, file, snapshot_key, snapshot::Depth::Full, &label, &cancel),
            &cancel,
            || teller.at(Phase::Preparing, done, all),
        )
        .map_err(|error| match error {
            // Whose it is is a choice where people choose; here it is content.
            BackupError::Store(error @ StoreError::NotOurs { .. }) => {
                BackupError::Content { what: format!("`{}`", label.display()), problem: error.to_string() }
            }
            error => error,
        })?;
        let told =
            contents.parts.iter().find(|part| part.name == *file).and_then(|part| part.database.as_ref());
        if told != Some(&facts) {
            return Err(BackupError::Content {
                what: format!("`{}`", label.display()),
                problem: "it is not what the table of contents says".to_owned(),
            });
        }
        done += bytes;
        watched(
            || snapshot::adopt(&staged, snapshot_key, key, &label, &cancel),
            &cancel,
            || teller.at(Phase::Preparing, done, all),
        )?;
        done += bytes;
    }
    teller.at(Phase::Preparing, all, all)
}

/// Makes sure that the key files open, and that the key in them is the one of these databases.
fn seal(
    key: &mut DataKey,
    keys: &Path,
    passphrase: &Passphrase,
    options: RestoreOptions,
) -> Result<(KeyWrap, bool), StoreError> {
    if !key::exists(&keys.join(KEY_FILE))? {
        key.seal_in(keys, &NewWrap::KeyStore)?;
        return Ok((KeyWrap::KeyStore, false));
    }
    let (wrap, is_about_it) = key.is_sealed_in(keys)?;
    let damaged = |problem| StoreError::KeyDamaged { path: keys.join(KEY_FILE), problem };
    if !is_about_it {
        return Err(damaged("it holds another key than the databases need"));
    }
    match wrap {
        KeyWrap::Passphrase { .. } if options.keep_seal => Ok((wrap, false)),
        KeyWrap::Passphrase { .. } => {
            key.seal_in(keys, &NewWrap::Passphrase(passphrase, PassphraseCost::DEFAULT))?;
            Ok((wrap, true))
        }
        KeyWrap::KeyStore | KeyWrap::Bare => {
            // Any path that exists: what is asked for is the key.
            match DataKey::load(keys, keys)?.is_same(key) {
                true => Ok((wrap, false)),
                false => Err(damaged("it holds another key than the databases need")),
            }
        }
    }
}

/// Exchanges what is live for what is staged.
fn take_over(
    installation: &Installation,
    path: &Path,
    options: RestoreOptions,
    staged: Staged,
) -> Result<Restored, BackupError> {
    let root = &installation.root;
    let exchange = Exchange::begin(root)?;
    let held: Vec<_> =
        snapshot::files().map(|file| hold_alone(&root.join(file))).collect::<Result<_, _>>()?;
    let stamp = stamp(root);
    let kept = |live: &Path| beside(live, &stamp);
    let staging = PathBuf::from(staged.workspace.path().file_name().unwrap_or_default());

    let mut items = Vec::new();
    for file in snapshot::files() {
        let (live, record) = (PathBuf::from(file), PathBuf::from(format!("{file}.id")));
        let is_new = staged.databases.iter().any(|name| name == file);
        let [new, new_record] = [&live, &record].map(|name| is_new.then(|| staging.join(name)));
        items.push(Item::new(Kind::Database, &live, new.as_deref(), &kept(&live)));
        items.push(Item::new(Kind::File, &record, new_record.as_deref(), &beside(&kept(&live), ".id")));
    }
    let keys = Path::new(KEYS);
    items.push(Item::new(Kind::Directory, keys, Some(&staging.join(keys)), &kept(keys)));
    // What waited for the old database is not for the new one.
    let journal = Path::new(journal::DIRECTORY);
    items.push(Item::new(Kind::Directory, journal, None, &kept(journal)));
    let config = staged.config.as_ref().zip(installation.config.as_ref()).filter(|_| !options.leave_config);
    let config = config.map(|(new, live)| stage_config(new, live, &stamp)).transpose()?.flatten();
    let config_path = config.is_some().then(|| installation.config.clone()).flatten();
    items.extend(config);

    let finished = exchange.carry_out(&staging, items)?;
    // From here on its content is live, and the rest is for whoever ends the exchange.
    staged.workspace.leave();
    for file in &staged.databases {
        snapshot::open_once(&root.join(file), &staged.key)?;
    }
    exchange.end()?;
    drop(held);
    let mut kept = finished.kept;
    if options.discard_old {
        kept.retain(|path| !discard(path));
    }
    Ok(Restored {
        path: path.to_owned(),
        contents: staged.contents,
        seal: staged.seal.as_str(),
        sealed_anew: staged.sealed_anew,
        config: config_path,
        kept,
    })
}

/// What is added to a name to keep the old file: the time, and a number if that is taken.
fn stamp(root: &Path) -> String {
    let now = Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let names = snapshot::files().chain([KEYS, journal::DIRECTORY]);
    let names: Vec<PathBuf> = names.map(|name| root.join(name)).collect();
    (1..)
        .map(|number| match number {
            1 => format!("{KEPT_MARK}{now}"),
            number => format!("{KEPT_MARK}{now}-{number}"),
        })
        .find(|stamp| names.iter().all(|name| fs::symlink_metadata(beside(name, stamp)).is_err()))
        .unwrap_or_default()
}

/// Puts the new configuration beside the old one, so that a rename is enough. `None` if it is the same.
fn stage_config(new: &Path, live: &Path, stamp: &str) -> Result<Option<Item>, BackupError> {
    let content = fs::read(new).map_err(BackupError::file(new, "read"))?;
    if fs::read(live).is_ok_and(|present| present == content) {
        return Ok(None);
    }
    let directory = parent(live);
    fs::create_dir_all(directory).map_err(BackupError::file(directory, "create"))?;
    // A link is followed: what it names is what is read.
    let live = fs::canonicalize(live).unwrap_or_else(|_| live.to_owned());
    let live = std::path::absolute(&live).map_err(BackupError::file(&live, "look at"))?;
    let staged = beside(&live, &format!("{stamp}-new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .map_err(BackupError::file(&staged, "create"))?;
    if let Ok(about) = fs::metadata(&live) {
        file.set_permissions(about.permissions()).map_err(BackupError::file(&staged, "prepare"))?;
    }
    file.write_all(&content).and_then(|()| file.sync_all()).map_err(BackupError::file(&staged, "write"))?;
    Ok(Some(Item::new(Kind::File, &live, Some(&staged), &beside(&live, stamp))))
}

/// Wipes what was live before; whether it is gone.
fn discard(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => wipe::wipe_directory(path).is_ok(),
        Ok(_) => {
            wipe::wipe_with_sidecars(path);
            fs::symlink_metadata(path).is_err()
        }
        Err(_) => true,
    }
}
