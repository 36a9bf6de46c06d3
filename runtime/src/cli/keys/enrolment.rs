//! An enrolment line: credentials on one line, from one shell to another. The secret in it is never an argument, which
//! others could see and a shell would keep: it leaves on standard output and comes in on standard input.

use std::{
    io::{self, IsTerminal, Read},
    path::PathBuf,
};

use clap::Args;
use interlock_bus::Credentials;
use serde_json::json;
use zeroize::Zeroizing;

use super::super::{CliError, Output, output, terminal};
use crate::exit::Exit;

/// Bytes of a line that is read. A longer one is something else.
const LINE_BYTES_MAX: u64 = 16 << 10;

#[derive(Debug, Args)]
pub(in super::super) struct Accept {
    /// Credentials file to write; by default NAME.toml in the current directory.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that has another key.
    #[arg(long)]
    replace: bool,
    /// What was done, as one JSON object without the secret.
    #[arg(long)]
    json: bool,
}

/// Prints the line, and where it goes to somebody who reads it.
pub(super) fn print(credentials: &Credentials, output: &mut Output) -> Result<(), CliError> {
    output.say(
        "whoever has this line can act as the peer; give it to `interlock keys accept` of the other shell",
    );
    output.line(&credentials.to_line())
}

pub(super) fn accept(arguments: &Accept, output: &mut Output) -> Result<Exit, CliError> {
    let line = read()?;
    let misuse = |text: String| CliError::new(Exit::Misuse, text);
    let text =
        std::str::from_utf8(&line).map_err(|_| misuse("standard input is not UTF-8 text".to_owned()))?;
    let credentials = Credentials::from_line(text.trim())?;
    let path = arguments.out.clone().unwrap_or_else(|| format!("{}.toml", credentials.name).into());
    if path.symlink_metadata().is_ok() && !arguments.replace {
        let present = Credentials::load(&path)?;
        if present.keys.public != credentials.keys.public {
            return Err(misuse(format!(
                "`{}` has another key, of `{}` (`{}`); write over it with `--replace`, or choose another file with `--out`",
                path.display(),
                present.name,
                present.keys.public.fingerprint()
            )));
        }
    }
    credentials.save(&path)?;
    if arguments.json {
        let line = json!({
            "name": credentials.name, "file": path, "public_key": credentials.keys.public,
            "fingerprint": credentials.keys.public.fingerprint(),
        });
        output.line(&output::json(&line)?)?;
    } else {
        output.line(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

/// What comes in: typed or pasted unseen at a terminal, or read to its end.
fn read() -> Result<Zeroizing<Vec<u8>>, CliError> {
    if io::stdin().is_terminal() {
        return terminal::secret_line("enrolment line (it is not shown): ", LINE_BYTES_MAX as usize)
            .map_err(|error| CliError::new(Exit::of_io(&error), format!("no enrolment line: {error}")));
    }
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX as usize + 1));
    let read = io::stdin().take(LINE_BYTES_MAX + 1).read_to_end(&mut line);
    read.map_err(|error| CliError::new(Exit::of_io(&error), format!("cannot read standard input: {error}")))?;
    if line.len() as u64 > LINE_BYTES_MAX {
        let text = format!("standard input has more than {LINE_BYTES_MAX} bytes; is it an enrolment line?");
        return Err(CliError::new(Exit::Misuse, text));
    }
    Ok(line)
}
