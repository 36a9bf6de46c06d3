//! `interlock logs --follow`: by the number of arrival, so that nothing is shown twice and nothing is left out, across
//! restarts of the runtime, and before its first one.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use interlock_actors::store::{LogQuery, Reader, StoreError};
use uuid::Uuid;

use super::{Layout, show};
use crate::{
    cli::{CliError, Global, Output},
    exit::Exit,
    lifecycle::DataDir,
};

/// How often to look whether something was written: one read of the database's change counter.
const POLL: Duration = Duration::from_millis(100);
/// How often to look whether the database is still the file that is open.
const LOOK_AT_FILE: Duration = Duration::from_secs(1);
/// Records read at once.
const PAGE: usize = 1000;

/// A database that is being followed.
struct Followed {
    reader: Reader,
    file: Option<u64>,
    looked: Instant,
}

pub(super) fn run(
    mut query: LogQuery,
    layout: Layout,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let database = data_dir.database();
    let mut followed = wait_for(global, &data_dir, output)?;
    let mut shown_last;
    // The newest ones first; what comes from here on has a higher number.
    loop {
        match followed.reader.search_logs(&query) {
            Ok(found) => {
                query.after_seq = Some(found.seen_to);
                found.records.iter().try_for_each(|log| show(&log.record, layout, output))?;
                shown_last = found.records.iter().max_by_key(|log| log.seq).map(|log| log.record.id);
                break;
            }
            Err(error) => bear(&error)?,
        }
    }
    query.limit = PAGE;
    loop {
        match news(&mut followed, &mut query, &mut shown_last, layout, output) {
            Ok(()) => {}
            Err(News::Output(error)) => return Err(error),
            Err(News::Store(error)) => bear(&error)?,
        }
        thread::sleep(POLL);
        if followed.looked.elapsed() >= LOOK_AT_FILE {
            followed.looked = Instant::now();
            if inode(&database) != followed.file {
                followed = wait_for(global, &data_dir, output)?;
                output.say("the database was replaced; going on with the one that is there now");
                // An earlier state of the same one has what was shown last; another one counts anew.
                let newest = followed.reader.newest_log_seq()?;
                let shown: Vec<_> = shown_last.into_iter().collect();
                let is_same = !followed.reader.logs_present(&shown)?.is_empty();
                query.after_seq = query.after_seq.map(|after| if is_same { after.min(newest) } else { 0 });
            }
        }
    }
}

enum News {
    Output(CliError),
    Store(StoreError),
}

/// Shows what has come.
fn news(
    followed: &mut Followed,
    query: &mut LogQuery,
    shown_last: &mut Option<Uuid>,
    layout: Layout,
    output: &mut Output,
) -> Result<(), News> {
    if !followed.reader.has_changed().map_err(News::Store)? {
        return Ok(());
    }
    loop {
        let found = followed.reader.search_logs(query).map_err(News::Store)?;
        if found.missed > 0 {
            output.say(&format!(
                "fell behind: up to {} records were deleted before they could be shown",
                found.missed
            ));
        }
        query.after_seq = Some(found.seen_to);
        for log in &found.records {
            show(&log.record, layout, output).map_err(News::Output)?;
            *shown_last = Some(log.record.id);
        }
        if found.records.len() < query.limit && !found.cut {
            return Ok(());
        }
    }
}

/// What cannot heal ends it; what can is waited for. A database that is being replaced is gone for a moment.
fn bear(error: &StoreError) -> Result<(), CliError> {
    let is_gone = matches!(error, StoreError::NotInitialised { .. } | StoreError::OlderSchema { .. });
    if is_gone || error.is_transient() {
        thread::sleep(POLL);
        return Ok(());
    }
    Err(CliError::from(error.clone()))
}

/// Opens the database, when there is one that can be read.
fn wait_for(global: &Global, data_dir: &DataDir, output: &mut Output) -> Result<Followed, CliError> {
    let database = data_dir.database();
    let mut told = false;
    loop {
        let file = inode(&database);
        let opened = match file {
            None => Err(StoreError::NotInitialised { path: database.clone() }),
            Some(_) => Reader::open(&database, &global.data_key(data_dir)?),
        };
        match opened {
            Ok(reader) => return Ok(Followed { reader, file, looked: Instant::now() }),
            Err(
                error @ (StoreError::NotInitialised { .. }
                | StoreError::OlderSchema { .. }
                | StoreError::Busy { .. }),
            ) => {
                if !told {
                    output.say(&format!("waiting: {error}"));
                    told = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        thread::sleep(POLL);
    }
}

/// Which file it is; `None` if there is none.
fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(|about| about.len() > 0).map(|about| about.ino())
}
