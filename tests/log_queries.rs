//! Log records, asked for through the real `interlock`: found, followed, kept and deleted as told.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use interlock_actors::{
    log_record::{Level, LogRecord},
    store::{DataKey, LogQuery, Reader, Store, StoreOptions},
};
use interlock_bus::blocking::wait;
use serde_json::Value;

use crate::harness::{
    TestProcess, eventually,
    runtime::{CONFIG, TestRuntime, tool},
};

/// A data directory whose log was written without a runtime.
struct Logged {
    directory: tempfile::TempDir,
}

impl Logged {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn with(records: Vec<LogRecord>) -> Self {
        let logged = Self::new();
        logged.append(records);
        logged
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("interlock.db")
    }

    fn key(&self) -> DataKey {
        DataKey::load_or_create(&self.directory.path().join("keys"), &self.database()).unwrap()
    }

    fn store(&self) -> Store {
        Store::open(&self.database(), &self.key(), StoreOptions::default()).unwrap()
    }

    fn append(&self, records: Vec<LogRecord>) {
        let store = self.store();
        for batch in records.chunks(5000) {
            wait(store.append(batch.to_vec())).unwrap();
        }
        store.close();
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.database(), &self.key()).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tool("interlock");
        command.arg("logs").args(arguments).arg("--data-dir").arg(self.directory.path()).env("TZ", "UTC");
        command
    }

    fn logs(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What is printed, when it ends with 0.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.logs(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The messages that are printed, in order; none if it ends with 1.
    fn messages(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.logs(&[arguments, &["--json"]].concat());
        assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines.lines().map(|line| serde_json::from_str::<LogRecord>(line).unwrap());
        records.map(|record| record.message).collect()
    }
}

fn record(level: Level, component: &str, message: &str) -> LogRecord {
    LogRecord::new(level, component, message)
}

/// Records `from..to`, with their number as message.
fn numbered(numbers: std::ops::Range<u32>) -> Vec<LogRecord> {
    numbers.map(|number| record(Level::Info, "test", &number.to_string())).collect()
}

/// A program that says `lines` lines of about 500 bytes, each with its number, and then stays.
fn talker(lines: u32) -> String {
    let filler = "filler ".repeat(60);
    let script = format!("for n in $(seq {lines}); do echo \\\"said $n {filler}\\\"; done; exec sleep 1000");
    format!("[[program]]\nname = \"talker\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", \"{script}\"]\n")
}

/// The numbers that the talker's records have, in the order in which `interlock logs` shows them.
fn said(runtime: &TestRuntime) -> Vec<u32> {
    let output =
        runtime.interlock(&["logs", "--json", "--component", "talker", "--text", "said", "-n", "100000"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let number = |line: &str| -> u32 {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["message"].as_str().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
    };
    lines.lines().map(number).collect()
}

#[test]
pub(crate) fn the_oldest_records_go_when_they_are_too_many_or_too_large() {
    let program = talker(4000);
    let runtime = TestRuntime::start_with(&program);
    eventually("all to be stored", || (said(&runtime).len() == 4000).then_some(()));
    let set = |logs: &str| {
        let file = runtime.directory.path().join("interlock.toml");
        std::fs::write(file, format!("{CONFIG}[logs]\n{logs}\n{program}")).unwrap();
    };
    let kept = |range: std::ops::Range<usize>| {
        eventually("the oldest to go", || {
            let said = said(&runtime);
            let newest_are_left = said.iter().copied().eq(4001 - said.len() as u32..=4000);
            (range.contains(&said.len()) && newest_are_left).then_some(())
        });
    };
    // A record of 500 bytes, its index included, takes between these.
    set("retention_bytes = 1048576");
    kept((1 << 20) / 1500..(1 << 20) / 500);
    // It is said once for the whole pass.
    eventually("that to be said", || {
        let output = runtime.interlock(&["logs", "--json", "--text", "retention deleted"]);
        let told: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let deleted: usize =
            told.first()?["message"].as_str().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
        assert!(told.len() == 1 && told[0]["component"] == "store", "{told:?}");
        (deleted * 2 >= 4000 - said(&runtime).len()).then_some(())
    });
    set("retention_rows = 1000");
    kept(500..1001);
}

#[test]
fn records_are_found_by_every_flag_and_by_several_together() {
    let hour_ns = 3_600_000_000_000;
    let mut records = vec![
        record(Level::Debug, "gateway", "request begun"),
        record(Level::Warn, "gateway", "Disk is nearly full"),
        record(Level::Error, "log-consumer", "disk full: gr\u{fc}n \u{1f600} \u{65e5}\u{672c}"),
        record(Level::Info, "log-transport", "conn-lost 127.0.0.1:8771"),
    ];
    let now = records[0].time_ns;
    for (age, record) in records.iter_mut().rev().enumerate() {
        record.time_ns = now - age as u64 * hour_ns;
    }
    records[0].fields = vec![("status".into(), "503".into()), ("path".into(), "/v1/chat".into())];
    records[1].fields = vec![("status".into(), "200".into())];
    (records[0].trace_id, records[2].trace_id) = (Some("t1".into()), Some("t1".into()));
    records[3].conversation = Some("c1".into());
    (records[0].target, records[1].target) = ("web::http".into(), "web".into());
    (records[1].process, records[1].incarnation) = (77, 9);
    let all: Vec<String> = records.iter().map(|record| record.message.clone()).collect();
    let logged = Logged::with(records);
    for (arguments, expected) in [
        (&[][..], &[0, 1, 2, 3][..]),
        (&["--level", "warn"], &[1, 2]),
        (&["-c", "gateway"], &[0, 1]),
        (&["-c", "log-*"], &[2, 3]),
        (&["-c", "!gateway"], &[2, 3]),
        (&["-c", "*", "-c", "!log-consumer"], &[0, 1, 3]),
        (&["--target", "web"], &[0, 1]),
        (&["--target", "web::http"], &[0]),
        (&["--since", "90m"], &[2, 3]),
        (&["--until", "90m"], &[0, 1]),
        (&["--since", "150m", "--until", "90m"], &[1]),
        (&["--last", "90m"], &[2, 3]),
        (&["--last", "1"], &[3]),
        (&["-n", "2"], &[2, 3]),
        (&["-n", "2", "--reverse"], &[3, 2]),
        (&["--field", "status=503"], &[0]),
        (&["--field", "status"], &[0, 1]),
        (&["--field", "status=503", "--field", "status=200"], &[0, 1]),
        (&["--field", "status=503", "--field", "path=/v2"], &[]),
        (&["--trace", "t1"], &[0, 2]),
        (&["--field", "trace_id=t1", "--level", "error"], &[2]),
        (&["--conversation", "c1"], &[3]),
        (&["--process", "77"], &[1]),
        (&["--incarnation", "9"], &[1]),
        (&["--text", "full disk"], &[1, 2]),
        (&["--text", "\"disk full\""], &[2]),
        (&["--text", "conn*"], &[3]),
        (&["--text", "127.0.0.1:8771"], &[3]),
        (&["--text", "GR\u{dc}N"], &[2]),
        (&["--text", "\u{1f600} \u{672c}"], &[2]),
        (&["--text", "\" AND ( NEAR * %_ '"], &[]),
        (&["--grep", "^disk"], &[2]),
        (&["--grep", "(?i)^disk", "-c", "gateway"], &[1]),
        (&["--text", "disk", "--level", "error", "-c", "log-*", "--trace", "t1", "--since", "today"], &[2]),
    ] {
        // The hours of this test may begin before midnight.
        let arguments: Vec<&str> =
            arguments.iter().map(|text| if *text == "today" { "2020-01-01" } else { text }).collect();
        let expected: Vec<&String> = expected.iter().map(|index| &all[*index]).collect();
        assert_eq!(logged.messages(&arguments).iter().collect::<Vec<_>>(), expected, "{arguments:?}");
    }
    for arguments in [
        &["--since", "soon"][..],
        &["--level", "loud"],
        &["--grep", "("],
        &["--since", "1h", "--until", "2h"],
        &["--last", "1h", "--since", "1h"],
    ] {
        let output = logged.logs(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    assert_eq!(logged.logs(&["--text", "absent"]).status.code(), Some(1));
    let wide = logged.prints(&["-n", "1", "--output", "wide"]);
    assert!(wide.contains("conn-lost 127.0.0.1:8771") && wide.contains("conversation=c1"), "{wide}");
}

#[test]
fn what_one_turn_caused_in_every_component_is_one_trace() {
    let runtime = TestRuntime::start_with("[logs]\nlevel = \"debug\"\n");
    let turns = ["one", "two"].map(|conversation| {
        let events = runtime.turn(conversation, "Hello");
        events.last().unwrap().1["turn"].as_str().unwrap().to_owned()
    });
    for turn in &turns {
        eventually("the turn to be in the log", || {
            let output = runtime.interlock(&["logs", "--trace", turn, "--json"]);
            let lines = String::from_utf8(output.stdout).unwrap();
            let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let others =
                turns.iter().filter(|other| *other != turn).any(|other| lines.contains(other.as_str()));
            assert!(!others, "{lines}");
            let of = |component: &str| records.iter().any(|record| record["component"] == component);
            (of("conversation") && of("model")).then_some(())
        });
    }
}

#[test]
fn a_follower_shows_each_record_once_before_the_first_start_across_restarts_and_other_databases() {
    let logged = Logged::new();
    let mut command = logged.command(&["--follow", "--json", "-n", "3"]);
    command.stdout(Stdio::piped());
    let follower = TestProcess::spawn(command);
    let expect = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            assert_eq!(follower.json()["message"], number.to_string());
        }
    };
    // There is nothing yet: it waits. Then writers come and go, each with the file closed in between.
    logged.append(numbered(0..3));
    expect(0..3);
    for round in 1..4 {
        logged.append(numbered(round * 3000..round * 3000 + 3000));
        expect(round * 3000..round * 3000 + 3000);
    }
    // Another database in its place.
    for file in ["interlock.db", "interlock.db-wal", "interlock.db-shm"] {
        let _ = std::fs::remove_file(logged.directory.path().join(file));
    }
    logged.append(numbered(50..60));
    expect(50..60);
}

#[test]
fn four_writers_at_once_are_followed_without_a_hole_and_without_a_repetition() {
    const EACH: u32 = 2000;
    let logged = Logged::with(numbered(0..1));
    let mut command = logged.command(&["--follow", "--json", "-n", "0", "-c", "writer-*"]);
    command.stdout(Stdio::piped());
    let follower = TestProcess::spawn(command);
    // It follows when it has shown this.
    eventually("the follower to follow", || {
        logged.append(vec![record(Level::Info, "writer-x", "begin")]);
        follower.line_within(std::time::Duration::from_millis(300))
    });
    let writer = |name: String, store: Store| {
        move || {
            for number in 0..EACH / 10 {
                let batch = (0..10).map(|one| record(Level::Info, &name, &(number * 10 + one).to_string()));
                wait(store.append(batch.collect())).unwrap();
            }
            store.close();
        }
    };
    let writers: Vec<_> =
        (0..4).map(|number| std::thread::spawn(writer(format!("writer-{number}"), logged.store()))).collect();
    let mut next = [0; 4];
    while next.iter().sum::<u32>() < 4 * EACH {
        let record = follower.json();
        let Some(number) =
            record["component"].as_str().unwrap().strip_prefix("writer-").unwrap().parse::<usize>().ok()
        else {
            continue;
        };
        assert_eq!(record["message"], next[number].to_string(), "of writer {number}");
        next[number] += 1;
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

#[test]
fn an_export_is_whole_and_other_programs_read_it() {
    let mut records = numbered(0..2500);
    records[1].message = "quotes \" and, commas\r\nlines \u{fc}\u{1f600}\u{1b}[31m".into();
    records[1].fields = vec![("k,".into(), "v\"\n".into())];
    let logged = Logged::with(records.clone());
    let file = logged.directory.path().join("out");
    let to = file.to_str().unwrap();
    assert_eq!(logged.logs(&["export", "--to", to]).status.code(), Some(0));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let lines = std::fs::read_to_string(&file).unwrap();
    let exported: Vec<LogRecord> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(exported, records);

    assert_eq!(logged.logs(&["export", "--format", "csv", "--to", to]).status.code(), Some(0));
    let script = "import csv,json,sys\nrows=list(csv.DictReader(open(sys.argv[1],newline='',encoding='utf-8'),strict=True))\n\
                  print(json.dumps([len(rows),rows[1]['message'],json.loads(rows[1]['fields']),rows[1]['level'],rows[2]['message']]))";
    let python = Command::new("python3").args(["-c", script, to]).output().unwrap();
    let read: Value =
        serde_json::from_slice(&python.stdout).unwrap_or_else(|error| panic!("{error}: {python:?}"));
    assert_eq!(read, serde_json::json!([2500, records[1].message, [["k,", "v\"\n"]], "info", "2"]));

    // The same filters; to standard output; nothing is left beside the file.
    assert_eq!(logged.prints(&["export", "--text", "1234"]).lines().count(), 1);
    assert_eq!(logged.logs(&["export", "--text", "absent", "--to", to]).status.code(), Some(1));
    assert_eq!(
        logged.logs(&["export", "--to", logged.directory.path().to_str().unwrap()]).status.code(),
        Some(2)
    );
    assert_eq!(logged.logs(&["export", "--to", "/nowhere/out"]).status.code(), Some(6));
    // Of a link the file that it names is written, and the link stays one.
    let link = logged.directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(
        logged.logs(&["export", "--text", "1234", "--to", link.to_str().unwrap()]).status.code(),
        Some(0)
    );
    assert!(link.is_symlink());
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
    // Times that no clock of ours has are before or after everything.
    assert_eq!(logged.messages(&["--until", "2600-01-01", "-n", "9"]).len(), 9);
    assert!(logged.messages(&["--since", "2600-01-01"]).is_empty());
    assert_eq!(logged.messages(&["--since", "1960-01-01", "-n", "9"]).len(), 9);
    let parts = std::fs::read_dir(logged.directory.path()).unwrap().flatten();
    let parts: Vec<_> = parts.filter(|entry| entry.file_name().to_string_lossy().contains(".part")).collect();
    assert!(parts.is_empty(), "{parts:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let logged = Logged::with(numbered(0..5000));
    for arguments in [&["-n", "5000"][..], &["export"], &["export", "--format", "csv"]] {
        let mut child =
            logged.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn pruning_says_what_it_has_really_deleted_with_a_runtime_and_without_one() {
    let mut records = numbered(0..6000);
    for (number, record) in records.iter_mut().enumerate() {
        record.level = if number % 100 == 0 { Level::Warn } else { Level::Info };
        record.time_ns -= (6000 - number as u64) * 60_000_000_000;
    }
    let logged = Logged::with(records);
    let left = |logged: &Logged| logged.messages(&["-n", "100000"]).len();
    assert_eq!(logged.prints(&["prune", "--keep", "5000", "--dry-run"]), "would delete 1000 records\n");
    assert_eq!(left(&logged), 6000);
    let said = logged.prints(&["prune", "--keep", "5000"]);
    assert!(said.starts_with("deleted 1000 records; 5000 are left ("), "{said}");
    let said = logged.prints(&["prune", "--older-than", "4000m", "--level-below", "warn"]);
    let kept = left(&logged);
    assert!(said.starts_with(&format!("deleted {} records; {kept} are left (", 5000 - kept)), "{said}");
    assert!((4005..4015).contains(&kept), "{kept} are left");
    let stat: Value = serde_json::from_str(&logged.prints(&["stat", "--json"])).unwrap();
    assert_eq!(
        (stat["rows"].as_u64(), stat["deleted"]["by_hand"].as_u64()),
        (Some(kept as u64), Some(6000 - kept as u64))
    );
    let bytes = stat["bytes"].as_u64().unwrap() / 4;
    logged.prints(&["prune", "--keep-bytes", &bytes.to_string()]);
    let stat: Value = serde_json::from_str(&logged.prints(&["stat", "--json"])).unwrap();
    assert!((bytes * 9 / 10..=bytes).contains(&stat["bytes"].as_u64().unwrap()), "{stat}");
    assert_eq!(left(&logged) as u64, stat["rows"].as_u64().unwrap());
    assert_eq!(logged.logs(&["prune", "--keep", "100000"]).status.code(), Some(1));
    assert_eq!(logged.logs(&["prune"]).status.code(), Some(2));
    logged.reader().check().unwrap();

    // Beside a writer that goes on: what it stores is there, what was pruned is gone.
    let store = logged.store();
    let writer = std::thread::spawn(move || {
        for number in 0..200 {
            wait(store.append(vec![record(Level::Info, "writer", &format!("w{number}"))])).unwrap();
        }
        store.close();
    });
    let said = logged.prints(&["prune", "--older-than", "1m"]);
    assert!(said.starts_with("deleted "), "{said}");
    writer.join().unwrap();
    let query = LogQuery { components: vec!["test".into()], ..LogQuery::default() };
    assert!(logged.reader().logs(&query).unwrap().len() <= 1);
    assert_eq!(logged.messages(&["-c", "writer"]).len(), 200);
    assert!(is_private(&logged.database()));
}

fn is_private(path: &Path) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o077 == 0
}
