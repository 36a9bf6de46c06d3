//! `interlock logs export`: any number of records in constant memory, read in pages, so that no long snapshot keeps the
//! write-ahead log from being moved into the database.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use interlock_actors::store::StoredLog;
use jiff::Timestamp;

use super::{filter::Filter, open};
use crate::{
    cli::{
        CliError, Global, Output, ascii,
        output::{json, unwritten},
    },
    exit::Exit,
};

/// Records read at once.
const PAGE: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// How to write a record.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Where to: made beside it and renamed when it is whole, for its owner only. Standard output without it.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object per line.
    Jsonl,
    /// Comma-separated values (RFC 4180), with a head line; fields and spans are JSON.
    Csv,
}

const CSV_HEAD: &str = "seq,time,level,component,target,process,incarnation,message,fields,spans,file,line,trace_id,\
                        conversation,origin,run,number,id\r\n";

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let mut query = arguments.filter.query()?;
    if arguments.filter.last_lines().is_some() {
        let text =
            "an export takes all that matches; of --last it knows a duration only, for example --last 10m";
        return Err(CliError::new(Exit::Misuse, text));
    }
    let reader = open(global, &global.data_dir()?)?;
    // What is logged from now on is not in it, so that it ends.
    let end = reader.newest_log_seq()?;
    (query.after_seq, query.limit) = (Some(0), PAGE);
    let mut target = Target::open(arguments.to.as_deref())?;
    let escape = target.is_terminal();
    let mut written: u64 = 0;
    let mut missed = 0;
    if arguments.format == Format::Csv {
        target.write(CSV_HEAD)?;
    }
    loop {
        let found = reader.search_logs(&query)?;
        // Before the first page nothing can have been missed.
        missed += if query.after_seq == Some(0) { 0 } else { found.missed };
        let full = found.records.len() == PAGE || found.cut;
        for log in found.records.iter().take_while(|log| log.seq <= end) {
            let line = match arguments.format {
                Format::Jsonl => json(&log.record)? + "\n",
                Format::Csv if escape => ascii(csv(log).trim_end()) + "\r\n",
                Format::Csv => csv(log),
            };
            target.write(&line)?;
            written += 1;
        }
        if !full || found.seen_to >= end {
            break;
        }
        query.after_seq = Some(found.seen_to);
    }
    target.finish()?;
    if missed > 0 {
        output.say(&format!(
            "up to {missed} records were deleted while they were being exported, and are not in it"
        ));
    }
    if let Some(file) = &arguments.to {
        output.say(&format!("{written} records are in `{}`", file.display()));
    }
    if written == 0 {
        output.say("nothing was logged that matches");
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// A record as one line of CSV.
fn csv(log: &StoredLog) -> String {
    let record = &log.record;
    let time = Timestamp::from_nanosecond(i128::from(record.time_ns)).unwrap_or_default();
    let list = |value: serde_json::Result<String>| value.unwrap_or_default();
    let option = |value: &Option<String>| value.clone().unwrap_or_default();
    let columns = [
        log.seq.to_string(),
        format!("{time:.9}"),
        record.level.to_string(),
        record.component.clone(),
        record.target.clone(),
        record.process.to_string(),
        record.incarnation.to_string(),
        record.message.clone(),
        list(serde_json::to_string(&record.fields)),
        list(serde_json::to_string(&record.spans)),
        option(&record.file),
        record.line.map(|line| line.to_string()).unwrap_or_default(),
        option(&record.trace_id),
        option(&record.conversation),
        option(&record.origin),
        record.run.to_string(),
        record.number.to_string(),
        record.id.to_string(),
    ];
    let cells: Vec<String> = columns.iter().map(|cell| quoted(cell)).collect();
    cells.join(",") + "\r\n"
}

/// A cell: in quotation marks where it must be, those inside it doubled.
fn quoted(cell: &str) -> String {
    if cell.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// Where the records go.
enum Target {
    Standard(BufWriter<io::Stdout>),
    /// The file under its temporary name, and both names.
    File {
        out: BufWriter<File>,
        part: PathBuf,
        path: PathBuf,
    },
    Done,
}

impl Target {
    fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = path else {
            return Ok(Self::Standard(BufWriter::with_capacity(1 << 16, io::stdout())));
        };
        // Of a link the file that it names is meant.
        let path = &match path.is_symlink() {
            true => fs::canonicalize(path).map_err(|error| failed(path, "follow", &error))?,
            false => path.to_owned(),
        };
        if path.exists() && !path.is_file() {
            let text = format!("`{}` is no file; name one that is there or can be made", path.display());
            return Err(CliError::new(Exit::Misuse, text));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let part = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(|error| failed(&part, "make", &error))?;
        Ok(Self::File { out: BufWriter::with_capacity(1 << 16, file), part, path: path.to_owned() })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Standard(_)) && io::stdout().is_terminal()
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        match self {
            Self::Standard(out) => out.write_all(text.as_bytes()).map_err(unwritten),
            Self::File { out, part, .. } => {
                out.write_all(text.as_bytes()).map_err(|error| failed(part, "write", &error))
            }
            Self::Done => Ok(()),
        }
    }

    /// All is written and stays: under its name only now.
    fn finish(&mut self) -> Result<(), CliError> {
        match self {
            Self::Standard(out) => out.flush().map_err(unwritten),
            Self::File { out, part, path } => {
                let synced = out.flush().and_then(|()| out.get_ref().sync_all());
                synced.map_err(|error| failed(part, "write", &error))?;
                fs::rename(&*part, &*path).map_err(|error| failed(path, "put in place", &error))?;
                *self = Self::Done;
                Ok(())
            }
            Self::Done => Ok(()),
        }
    }
}

impl Drop for Target {
    /// Half a file is no export.
    fn drop(&mut self) {
        if let Self::File { part, .. } = self {
            // Nothing can be done about one that cannot be removed; its name says what it is.
            let _ = fs::remove_file(part);
        }
    }
}

fn failed(path: &Path, doing: &str, error: &io::Error) -> CliError {
    CliError::new(Exit::of_io(error), format!("cannot {doing} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_it_must_be() {
        for (cell, expected) in [
            ("plain", "plain"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\r\nb", "\"a\r\nb\""),
        ] {
            assert_eq!(quoted(cell), expected);
        }
    }
}
