//! The file of a run: a line for each client and phase, in the columns that `nats bench` has, and the phase.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    exit::Exit,
    tool::{failure::Failure, histogram::Histogram},
};

const COLUMNS: &str = "#RunID,Phase,ClientID,MsgCount,MsgBytes,MsgsPerSec,BytesPerSec,DurationSecs,MinLatencyMicroSecs,\
    AvgLatencyMicroSecs,MaxLatencyMicroSecs,P50LatencyMicroSecs,P90LatencyMicroSecs,P99LatencyMicroSecs,\
    P99.9LatencyMicroSecs,StdDevLatencyMicroSecs";

/// What one client did in one phase.
#[derive(Debug)]
pub(super) struct Party {
    /// What it was, and its number if there are several.
    pub(super) client: String,
    /// Messages it published, received, asked or answered.
    pub(super) messages: u64,
    /// How long it took.
    pub(super) took: Duration,
    /// How long each took, if that was measured here.
    pub(super) times: Option<Histogram>,
}

impl Party {
    pub(super) fn new(client: impl Into<String>, messages: u64, took: Duration) -> Self {
        Self { client: client.into(), messages, took, times: None }
    }

    fn line(&self, run: Uuid, phase: &str, size: u64) -> String {
        let (seconds, bytes) = (self.took.as_secs_f64(), self.messages * size);
        let per_second = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
        let mut cells = vec![
            run.to_string(),
            phase.to_owned(),
            self.client.clone(),
            self.messages.to_string(),
            bytes.to_string(),
            format!("{:.1}", per_second(self.messages)),
            format!("{:.1}", per_second(bytes)),
            format!("{seconds:.6}"),
        ];
        let microseconds = |time: Duration| format!("{:.3}", time.as_nanos() as f64 / 1e3);
        match &self.times {
            Some(times) => {
                let shares = [0.5, 0.9, 0.99, 0.999].map(|share| times.percentile(share));
                let ends = [times.shortest(), times.mean(), times.percentile(1.0)];
                cells.extend(ends.into_iter().chain(shares).chain([times.deviation()]).map(microseconds));
            }
            None => cells.extend(std::iter::repeat_n(String::new(), 8)),
        }
        cells.join(",")
    }
}

/// Whether the file will be writable, told before a run that it would be in vain without.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let temporary = temporary(path, Uuid::now_v7());
    let tried = match path.is_dir() {
        true => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        false => File::create_new(&temporary).and_then(|_| fs::remove_file(&temporary)),
    };
    tried.map_err(|error| unwritable(path, &error))
}

fn temporary(path: &Path, run: Uuid) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{run}"))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::of_io(error), format!("cannot write `{}`: {error}", path.display()))
}

/// Writes the file as a whole or not at all. `phases` are the parties of each.
pub(super) fn write(path: &Path, size: u64, phases: &[(String, &[Party])]) -> Result<(), Failure> {
    let run = Uuid::now_v7();
    let lines =
        phases.iter().flat_map(|(phase, parties)| parties.iter().map(|party| party.line(run, phase, size)));
    let text: String = [COLUMNS.to_owned()].into_iter().chain(lines).map(|line| line + "\n").collect();
    let temporary = temporary(path, run);
    let written = replace(path, &temporary, text.as_bytes());
    written.map_err(|error| {
        // It may not have been made.
        let _ = fs::remove_file(&temporary);
        unwritable(path, &error)
    })
}

fn replace(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_written_is_refused_before_the_run_and_one_that_can_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        for bad in [directory.path().to_owned(), directory.path().join("nowhere/run.csv")] {
            let said = check(&bad).unwrap_err().to_string();
            assert!(said.contains("cannot write") && said.contains(bad.to_str().unwrap()), "{said}");
        }
        let path = directory.path().join("run.csv");
        fs::write(&path, "before").unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
