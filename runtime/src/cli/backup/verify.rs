//! `interlock backup verify`.

use std::path::{Path, PathBuf};

use clap::Args;
use interlock_actors::backup::{self, Contents, Installation};

use super::{CliError, Global, Output, Seal, describe, installation, sweep, time, watch::watch};
use crate::exit::Exit;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The backup.
    file: PathBuf,
    /// A restore drill: everything a restore does before it touches anything, in a private place that is wiped afterwards.
    #[arg(long)]
    drill: bool,
    #[command(flatten)]
    seal: Seal,
    /// One JSON object a line: how far it is, and at the end what is in it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    if arguments.drill {
        return drill(&arguments.file, &arguments.seal, arguments.json, global, output);
    }
    let passphrase = arguments.seal.of(&arguments.file)?;
    let verified =
        watch(arguments.json, output, |watcher| backup::verify(&arguments.file, &passphrase, watcher))?;
    if !arguments.json {
        told(&arguments.file, "is whole: each chunk opens", &verified.contents, output)?;
    }
    Ok(Exit::Done)
}

/// Restores into a place that is wiped afterwards.
pub(super) fn drill(
    file: &Path,
    seal: &Seal,
    json: bool,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let installation = installation(global)?;
    // Where nothing is installed yet, what is temporary goes where other such things are.
    let root = if installation.root.is_dir() { installation.root } else { std::env::temp_dir() };
    let installation = Installation { root, config: None };
    sweep(&installation.root, output);
    let passphrase = seal.of(file)?;
    let contents = watch(json, output, |watcher| backup::drill(&installation, file, &passphrase, watcher))?;
    if !json {
        told(
            file,
            "can be restored: all of it was, and was checked, in a place that is wiped",
            &contents,
            output,
        )?;
    }
    Ok(Exit::Done)
}

fn told(file: &Path, what: &str, contents: &Contents, output: &mut Output) -> Result<(), CliError> {
    output.line(&format!(
        "`{}` {what}; made {} by version {}:",
        file.display(),
        time(contents.created_ns),
        contents.program
    ))?;
    describe(contents, output)
}
