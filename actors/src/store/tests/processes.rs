//! Several real processes on one database: this test binary, started again as a child.
//!
//! `INTERLOCK_TEST_ROUNDS=500 cargo test -p interlock-actors processes` is the soak size.

use super::*;

const ROLE: &str = "INTERLOCK_STORE_TEST_ROLE";
const PLACE: &str = "INTERLOCK_STORE_TEST_PLACE";

/// Rounds of a test that repeats itself; few by default.
pub(super) fn rounds(default: usize) -> usize {
    std::env::var("INTERLOCK_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// Another process of this binary that waits to be released. Killed when dropped.
pub(in crate::store) struct Other {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Other {
    pub(in crate::store) fn start(role: &str, place: &Place) -> Self {
        Self::start_under(&[], role, place)
    }

    /// The same, run by another program, which is given its command line behind these words.
    pub(in crate::store) fn start_under(under: &[String], role: &str, place: &Place) -> Self {
        let test = std::env::current_exe().unwrap();
        let mut words = under.iter().map(std::ffi::OsString::from).chain([test.into_os_string()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args([
                "--exact",
                "store::tests::processes::in_another_process",
                "--ignored",
                "--nocapture",
                "--quiet",
            ])
            .env(ROLE, role)
            .env(PLACE, place.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {under:?}: {error}"));
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, says };
        while other.line() != "waiting" {}
        other
    }

    /// Lets it go on.
    pub(in crate::store) fn release(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// The next line it prints; empty at the end.
    pub(in crate::store) fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        assert!(!line.contains("panicked"), "{line}");
        line.trim().to_owned()
    }

    pub(in crate::store) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    fn status(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    pub(in crate::store) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The whole lines that it said, up to its end.
    pub(in crate::store) fn said(&mut self) -> Vec<String> {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.says, &mut said).unwrap();
        said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// What it acknowledged, up to its end.
    pub(super) fn rest(&mut self) -> Vec<Uuid> {
        let mut acknowledged = Vec::new();
        loop {
            let mut line = String::new();
            if self.says.read_line(&mut line).unwrap() == 0 {
                return acknowledged;
            }
            // A line without its end was cut off by the kill: it was not acknowledged to us.
            acknowledged.extend(line.strip_suffix('\n').and_then(acknowledgement));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.kill();
    }
}

fn acknowledgement(line: &str) -> Option<Uuid> {
    line.trim().strip_prefix("stored ").and_then(|id| id.parse().ok())
}

/// What the children do.
#[test]
#[ignore = "started by the other tests of this file"]
fn in_another_process() {
    let (Ok(role), Ok(place)) = (std::env::var(ROLE), std::env::var(PLACE)) else { return };
    let place = PathBuf::from(place);
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
    };
    say("\nwaiting\n".to_owned());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let database = place.join(DATABASE_FILE);
    if role.starts_with("outbox-") {
        return crate::store::outbox::tests::processes::act(&role, &place, &say);
    }
    if role == "reseal" {
        return super::sealing::reseal(&place, &say);
    }
    if role == "move" {
        return super::backups::move_amounts(&place, &say);
    }
    let soak = match role.as_str() {
        "soak-write" => Some(super::soak::write(&place, &say)),
        "soak-read" => Some(super::soak::read(&place, &say)),
        _ => None,
    };
    if let Some(ended) = soak {
        return ended.unwrap_or_else(|error| say(format!("failed {error}\n")));
    }
    let opened = DataKey::load_or_create(&place.join("keys"), &database)
        .and_then(|key| Store::open(&database, &key, StoreOptions::default()));
    let store = match opened {
        Ok(store) => store,
        Err(error) => return say(format!("failed {error}\n")),
    };
    say("opened\n".to_owned());
    if role == "leave" {
        let key = DataKey::load(&place.join("keys"), &database).unwrap();
        let stores: Vec<_> =
            (0..8).map(|_| Store::open(&database, &key, StoreOptions::default()).unwrap()).collect();
        stores.iter().for_each(|store| assert!(wait(store.history("none", 1)).unwrap().is_empty()));
        return;
    }
    wait(async {
        if role != "write" {
            return;
        }
        loop {
            let records: Vec<LogRecord> = (0..3).map(|_| record(&"text ".repeat(20))).collect();
            let ids: Vec<Uuid> = records.iter().map(|record| record.id).collect();
            match store.append(records).await {
                Ok(_) => say(ids.iter().map(|id| format!("stored {id}\n")).collect()),
                Err(error) => return say(format!("failed {error}\n")),
            }
        }
    });
    store.close();
}

/// A random number below `bound`, different in each run, from the clock: the instants of a kill need no more.
pub(in crate::store) fn random(bound: u64) -> u64 {
    u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) / 7 % bound
}

#[test]
fn six_processes_open_one_empty_directory_at_once() {
    for round in 0..rounds(8) {
        let place = Place::new();
        let mut others: Vec<Other> = (0..6).map(|_| Other::start("open", &place)).collect();
        others.iter_mut().for_each(Other::release);
        for other in &mut others {
            assert_eq!(other.line(), "opened", "round {round}");
        }
        drop(others);
        place.reader().check().unwrap();
        let versions: i64 = place
            .connection()
            .query_row("SELECT count(*) FROM schema_migrations", [], |row| row.get(0))
            .unwrap();
        assert_eq!(versions, i64::from(migrate::known_version(migrate::MIGRATIONS)), "round {round}");
        assert_eq!(
            fs::read_dir(place.keys()).unwrap().count(),
            2,
            "round {round}: something is left beside the key and its wrapping key"
        );
    }
}

#[test]
fn a_process_that_ends_without_closing_its_stores_ends_in_order() {
    let place = Place::new();
    for round in 0..rounds(10) {
        let mut other = Other::start("leave", &place);
        other.release();
        assert_eq!(other.line(), "opened");
        let status = other.status();
        assert!(status.success(), "round {round}: {status:?}");
    }
}

#[test]
fn processes_killed_while_they_initialise_leave_all_or_nothing() {
    for round in 0..rounds(15) {
        let place = Place::new();
        let mut others: Vec<Other> = (0..2).map(|_| Other::start("open", &place)).collect();
        others.iter_mut().for_each(Other::release);
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(Duration::from_micros(random(12_000)));
        others.iter_mut().for_each(Other::kill);
        if place.database().exists() {
            let version = schema_version(&place.database(), &place.key());
            assert!(version.is_ok(), "round {round}: {version:?}");
        }
        let store = place.open();
        wait(store.append(vec![record("after")])).unwrap();
        store.close();
        place.reader().check().unwrap();
    }
}

#[test]
fn what_was_acknowledged_to_a_killed_writer_is_there() {
    let place = Place::new();
    let mut acknowledged = Vec::new();
    for _ in 0..rounds(6) {
        let mut others: Vec<Other> = (0..3).map(|_| Other::start("write", &place)).collect();
        others.iter_mut().for_each(Other::release);
        for other in &mut others {
            assert_eq!(other.line(), "opened");
        }
        for _ in 0..random(20) {
            let line = others[0].line();
            acknowledged.push(acknowledgement(&line).unwrap_or_else(|| panic!("{line}")));
        }
        for other in &mut others {
            other.kill();
            acknowledged.extend(other.rest());
        }
    }
    let reader = place.reader();
    let present = reader.logs_present(&acknowledged).unwrap();
    let lost = acknowledged.iter().filter(|id| !present.contains(id)).count();
    assert_eq!(lost, 0, "of {} acknowledged rows", acknowledged.len());
    assert!(!acknowledged.is_empty());
    reader.check().unwrap();
}

#[test]
fn a_reader_beside_the_writing_process_sees_its_records_also_after_it_was_killed() {
    let place = Place::new();
    let mut other = Other::start("write", &place);
    other.release();
    assert_eq!(other.line(), "opened");
    let mut reader = place.reader();
    for _ in 0..30 {
        let line = other.line();
        let id = acknowledgement(&line).unwrap_or_else(|| panic!("{line}"));
        assert!(reader.logs_present(&[id]).unwrap().contains(&id));
    }
    reader.has_changed().unwrap();
    other.kill();
    let acknowledged = other.rest();
    assert_eq!(place.reader().logs_present(&acknowledged).unwrap().len(), acknowledged.len());
}

#[test]
fn a_wrong_key_leaves_the_write_ahead_log_of_a_killed_process_as_it_is() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let mut other = Other::start("write", &place);
    other.release();
    assert_eq!(other.line(), "opened");
    (0..30).for_each(|_| assert!(acknowledgement(&other.line()).is_some()));
    other.kill();
    let acknowledged = other.rest();
    let files = || {
        ["interlock.db", "interlock.db-wal"].map(|name| fs::read(place.directory.path().join(name)).unwrap())
    };
    let before = files();
    assert!(!before[1].is_empty());
    for _ in 0..2 {
        let error = Store::open(&place.database(), &elsewhere.key(), StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
        assert!(files() == before, "the refused open changed a file");
    }
    assert_eq!(place.reader().logs_present(&acknowledged).unwrap().len(), acknowledged.len());
}
