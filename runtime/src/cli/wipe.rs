//! `interlock wipe`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use clap::Args;
use interlock_actors::{
    backup::{self, BackupError},
    wipe::{SIDECARS, Wiped, wipe_with_sidecars, with_sidecars},
};

use super::{CliError, Global, Output, output::json};
use crate::{
    exit::Exit,
    lifecycle::{self, DataDir, InstanceLock},
};

/// What wiping is worth, for whoever asks for help.
const HONEST: &str = "\
Each file is overwritten once with random bytes, synced, renamed to a random name, and removed; its
directory is synced after each step. With a database go its -wal, -shm and -journal. Only plain files
are wiped: links are not followed, pipes and devices are refused. Nothing at all is wiped if one of the
files has a second name (hard link), under which its content would be gone, too; or if one is in use: if
it belongs to the data directory of an instance that runs (but for backups and what a restore has kept),
is a database that some process has open, or is the configuration file of an instance that runs on the
data directory which is in force here (--data-dir, INTERLOCK_RUNTIME_DATA_DIR, configuration), or on the
one that the file itself names. From elsewhere it cannot be seen that such a file is in use.

What that is worth: best effort. On flash (SSD, memory cards), on file systems that write elsewhere
(btrfs, ZFS, bcachefs) and under snapshots, RAID and copies, old cells can survive an overwrite. What
protects data there is that they were encrypted and that the key is gone: the databases and backups of
Interlock are never on a disk in plain text.

Exit code: 0 all wiped, 1 some only unlinked (the reason is printed), 5 one is in use or
has a second name, 6 some are still there.";

#[derive(Debug, Args)]
#[command(after_long_help = HONEST, after_help = HONEST)]
pub(super) struct Arguments {
    /// The files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// One JSON object a file.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    // All of them before the first: half of what was asked for is harder to understand than nothing.
    for file in &arguments.files {
        drop(unused(file, global)?);
    }
    let mut exit = Exit::Done;
    for file in &arguments.files {
        let _nobody_else = unused(file, global)?;
        let mut wiped = wipe_with_sidecars(file);
        if !wiped.iter().any(|(path, _)| path == file) {
            wiped.push((file.clone(), Wiped::Failed("there is no such file".to_owned())));
        }
        for (path, wiped) in wiped {
            match &wiped {
                Wiped::Wiped => {}
                Wiped::UnlinkedOnly(_) if exit == Exit::Done => exit = Exit::Failed,
                Wiped::UnlinkedOnly(_) => {}
                Wiped::Failed(_) => exit = Exit::Io,
            }
            if arguments.json {
                let mut line = serde_json::json!({ "path": path.display().to_string() });
                if let (Some(line), Ok(serde_json::Value::Object(result))) =
                    (line.as_object_mut(), serde_json::to_value(&wiped))
                {
                    line.extend(result);
                }
                output.line(&json(&line)?)?;
            } else {
                output.line(&format!("`{}` {wiped}", path.display()))?;
            }
        }
    }
    Ok(exit)
}

/// Refuses what somebody works with. While the file lives that this gives, nobody else can open the database.
fn unused(file: &Path, global: &Global) -> Result<Option<File>, CliError> {
    let refused = |exit: Exit, why: &dyn std::fmt::Display| {
        CliError::new(exit, format!("`{}` is in use, and nothing was wiped: {why}", file.display()))
    };
    // What is not there, or no plain file, is told when its turn comes.
    let (Some(name), Ok(directory)) = (file.file_name(), fs::canonicalize(parent(file))) else {
        return Ok(None);
    };
    let is_plain = |path: &Path| fs::symlink_metadata(path).is_ok_and(|about| about.is_file());
    let whole = directory.join(name);
    for root in directory.ancestors() {
        let holder = InstanceLock::holder(&DataDir::at(root));
        if let Some(holder) = holder.filter(|_| is_of_an_instance(&whole, root)) {
            return Err(refused(holder.exit(), &holder));
        }
    }
    if let Some(holder) = instance_configured_by(&whole, global) {
        return Err(refused(
            holder.exit(),
            &format!("it is the configuration file of an instance: {holder}"),
        ));
    }
    for path in with_sidecars(&whole) {
        has_one_name(&path)?;
    }
    // What stands beside a database is in use when that is.
    let base = SIDECARS.iter().find_map(|suffix| name.as_bytes().strip_suffix(suffix.as_bytes()));
    let base = base.map(|base| directory.join(OsStr::from_bytes(base)));
    let database = base.filter(|base| is_plain(base)).unwrap_or(whole);
    if !is_plain(&database) {
        return Ok(None);
    }
    match backup::hold_alone(&database) {
        Ok(held) => Ok(held),
        Err(error @ BackupError::Store(_)) => Err(refused(CliError::from(error).exit(), &in_use(&database))),
        // What cannot be opened cannot be overwritten either, and that is told with its reason.
        Err(_) => Ok(None),
    }
}

/// The instance that runs with this configuration file: the one on the data directory that is in force here, or on the one that
/// the file itself names. Nothing leads from a file to an instance elsewhere.
fn instance_configured_by(file: &Path, global: &Global) -> Option<lifecycle::LifecycleError> {
    let same =
        |about: fs::Metadata, other: &fs::Metadata| (about.dev(), about.ino()) == (other.dev(), other.ino());
    let about = fs::symlink_metadata(file).ok()?;
    [global.load(), global.load_with(Some(file.to_owned()))].into_iter().flatten().find_map(|loaded| {
        let data_dir = DataDir::at(loaded.config.data_dir()?);
        let config = lifecycle::running(&data_dir).ok()??.config?;
        // Also where the instance was given a link to it, or this is one.
        let names = [fs::metadata(&config), fs::symlink_metadata(&config)];
        let is_it = names.into_iter().flatten().any(|named| same(named, &about));
        is_it.then(|| InstanceLock::holder(&data_dir)).flatten()
    })
}

/// Refuses a file that is to be found under another name as well: overwritten it would be lost there, too.
fn has_one_name(file: &Path) -> Result<(), CliError> {
    let names =
        fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file).map_or(1, |about| about.nlink());
    match names.saturating_sub(1) {
        0 => Ok(()),
        others => {
            let (names, them) = if others == 1 { ("name", "it") } else { ("names", "them") };
            let path = file.display();
            let text = format!(
                "`{path}` has {others} other {names} (hard links), under which its content would be gone, too, and nothing was \
                 wiped; find {them} with `find DIRECTORY -samefile {path}`, and remove {them} with `rm` first, or only this name",
            );
            Err(CliError::new(Exit::Busy, text))
        }
    }
}

/// Whether an instance on `root` may work with the file: all but backups, and what a restore has kept.
fn is_of_an_instance(file: &Path, root: &Path) -> bool {
    let first = file.strip_prefix(root).ok().and_then(|below| below.components().next());
    let first = first.map(|first| first.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    first != "backups" && !first.contains(backup::KEPT_MARK)
}

/// Who has a database open, as far as the system says.
fn in_use(database: &Path) -> String {
    let who = match backup::who_has_open(database) {
        Some(pid) => format!("process {pid} has the database open"),
        None => "some process has the database open".to_owned(),
    };
    format!("{who}; end it, `interlock stop` if it is an instance")
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
