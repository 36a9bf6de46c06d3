//! Four writing and two reading processes on one database, killed at random: no error reaches a caller, and what was
//! acknowledged is there.
//!
//! `INTERLOCK_STORE_SECONDS=600 cargo test -p interlock-actors soak -- --nocapture` is the soak size.

use std::{collections::HashSet, time::Instant};

use super::{
    processes::{Other, random},
    *,
};

const WRITERS: usize = 4;
const READERS: usize = 2;

fn seconds() -> u64 {
    std::env::var("INTERLOCK_STORE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(8)
}

/// Nothing is trimmed: what was acknowledged is to be found.
fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    (options.logs.rows_max, options.logs.bytes_max) = (u64::MAX, u64::MAX);
    options
}

/// What a writing child does: it appends, says things, and writes down what was acknowledged, after that it was. Now and
/// then it closes the store and opens it anew, as a service that is restarted does.
pub(super) fn write(place: &Path, say: &dyn Fn(String)) -> Result<(), String> {
    let database = place.join(DATABASE_FILE);
    let name = format!("acknowledged-{}", std::process::id());
    let mut acknowledged = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(place.join(name))
        .map_err(|error| error.to_string())?;
    let conversation = format!("c{}", std::process::id());
    let text = |error: &dyn std::fmt::Display| error.to_string();
    loop {
        let key = DataKey::load_or_create(&place.join("keys"), &database).map_err(|error| text(&error))?;
        let store = Store::open(&database, &key, options()).map_err(|error| text(&error))?;
        say("opened\n".to_owned());
        for _ in 0..200 + random(200) {
            let records: Vec<LogRecord> = (0..1 + random(8))
                .map(|number| record(&format!("{number} {}", "text ".repeat(20))))
                .collect();
            let mut lines: String = records.iter().map(|record| format!("log {}\n", record.id)).collect();
            let message =
                NewMessage::new(&conversation, Uuid::now_v7(), Role::User, MessageState::Complete, "said");
            lines.push_str(&format!("message {conversation} {}\n", message.id));
            wait(async {
                store.create_conversation(&conversation, "soak").await.map_err(|error| text(&error))?;
                let (appended, said) =
                    futures_util::join!(store.append_waiting(records), store.append_message(message));
                appended.map_err(|error| text(&error))?;
                said.map_err(|error| text(&error)).map(drop)
            })?;
            // One call: a kill leaves a whole line or none.
            acknowledged.write_all(lines.as_bytes()).map_err(|error| text(&error))?;
        }
        store.close();
    }
}

/// What a reading child does: what it has once seen it goes on seeing.
pub(super) fn read(place: &Path, say: &dyn Fn(String)) -> Result<(), String> {
    let database = place.join(DATABASE_FILE);
    loop {
        let opened =
            DataKey::load(&place.join("keys"), &database).and_then(|key| Reader::open(&database, &key));
        let mut reader = match opened {
            Ok(reader) => reader,
            // The writers have been released at the same moment.
            Err(StoreError::NotInitialised { .. } | StoreError::KeyMissing { .. }) => continue,
            Err(error) => return Err(error.to_string()),
        };
        say("opened\n".to_owned());
        let mut newest = 0;
        for _ in 0..100 + random(300) {
            let mut look = || -> Result<(), StoreError> {
                reader.has_changed()?;
                let found = reader.logs(&LogQuery { limit: 50, ..LogQuery::default() })?;
                let now = reader.newest_log_seq()?;
                assert!(now >= newest, "the reader went back from {newest} to {now}");
                newest = now;
                let ids: Vec<Uuid> = found.iter().map(|log| log.record.id).collect();
                assert_eq!(reader.logs_present(&ids)?.len(), ids.len());
                for conversation in reader.conversations(5)? {
                    reader.history(&conversation.id, 20)?;
                }
                Ok(())
            };
            look().map_err(|error| error.to_string())?;
        }
    }
}

#[test]
fn four_writers_and_two_readers_under_kill_9_lose_nothing_and_see_no_error() {
    let place = Place::new();
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let role = |number: usize| if number < WRITERS { "soak-write" } else { "soak-read" };
    let mut others: Vec<Other> =
        (0..WRITERS + READERS).map(|number| Other::start(role(number), &place)).collect();
    others.iter_mut().for_each(Other::release);
    let (mut kills, mut opens) = (0, 0);
    let mut judge = |said: Vec<String>| {
        for line in said {
            assert!(line == "opened", "a caller saw an error: {line}");
            opens += 1;
        }
    };
    while Instant::now() < deadline {
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(Duration::from_micros(random(300_000)));
        let number = random(others.len() as u64) as usize;
        others[number].kill();
        judge(others[number].said());
        kills += 1;
        others[number] = Other::start(role(number), &place);
        others[number].release();
    }
    for other in &mut others {
        other.kill();
        judge(other.said());
    }
    let files = fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let (mut logs, mut messages) = (Vec::new(), HashSet::new());
    for file in files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("acknowledged-"))
    {
        for line in fs::read_to_string(file).unwrap().split_inclusive('\n') {
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            match (line.ends_with('\n'), words.as_slice()) {
                (true, ["log", id]) => logs.push(id.parse::<Uuid>().unwrap()),
                (true, ["message", conversation, id]) => {
                    messages.insert(((*conversation).to_owned(), id.parse::<Uuid>().unwrap()));
                }
                // Cut off by the kill.
                _ => {}
            }
        }
    }
    let wal = fs::metadata(place.directory.path().join("interlock.db-wal")).map_or(0, |about| about.len());
    let reader = place.reader();
    let mut lost = 0;
    for some in logs.chunks(5000) {
        lost += some.len() - reader.logs_present(some).unwrap().len();
    }
    for conversation in reader.conversations(usize::MAX >> 1).unwrap() {
        for message in reader.history(&conversation.id, usize::MAX >> 1).unwrap() {
            messages.remove(&(conversation.id.clone(), message.message.id));
        }
    }
    assert_eq!((lost, messages.len()), (0, 0), "of {} records", logs.len());
    assert!(!logs.is_empty() && kills > 0);
    reader.check().unwrap();
    let began = Instant::now();
    place.open().close();
    let report = format!(
        "{} s, {kills} kills, {opens} opens, {} records acknowledged, write-ahead log {wal} bytes, opened after it in {:?}\n",
        seconds(),
        logs.len(),
        began.elapsed()
    );
    std::io::stdout().write_all(report.as_bytes()).unwrap();
}
