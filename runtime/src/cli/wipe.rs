//! `interlock wipe`.

use std::path::PathBuf;

use clap::Args;
use interlock_actors::wipe::{Wiped, wipe_with_sidecars};

use super::{CliError, Output, output::json};
use crate::exit::Exit;

/// What wiping is worth, for whoever asks for help.
const HONEST: &str = "\
Each file is overwritten once with random bytes, synced, renamed to a random name, and removed; its
directory is synced after each step. With a database go its -wal, -shm and -journal. Only plain files
are wiped: links are not followed, pipes and devices are refused.

What that is worth: best effort. On flash (SSD, memory cards), on file systems that write elsewhere
(btrfs, ZFS, bcachefs) and under snapshots, RAID and copies, old cells can survive an overwrite. What
protects data there is that they were encrypted and that the key is gone: the databases and backups of
Interlock are never on a disk in plain text.

Exit code: 0 all wiped, 1 some only unlinked (the reason is printed), 6 some are still there.";

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

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    for file in &arguments.files {
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
