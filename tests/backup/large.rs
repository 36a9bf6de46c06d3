//! Sizes: memory that does not grow, and a disk without room.
//!
//! `INTERLOCK_BACKUP_MB=1000 cargo test -p interlock-tests backup::large -- --nocapture` is the soak size.

use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::harness::dice;

/// Memory that a backup may need, and that of its key derivation.
const MEMORY_KB_MAX: u64 = (128 + 128) << 10;

/// A database of so many megabytes.
fn filled(place: &Place, megabytes: u64) {
    place.execute("INSERT INTO conversations VALUES ('talk', '', 0, 0)");
    let mut left = megabytes;
    while left > 0 {
        let now = left.min(200);
        place.execute(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
             SELECT randomblob(16), 'talk', '00000000-0000-0000-0000-000000000000', 'user', 'complete', hex(randomblob(50000)), 0 FROM n",
            now * 10
        ));
        left -= now;
    }
}

/// Runs it, and gives the most memory that it had, in kB, and the time that it took.
fn measured(mut command: Command) -> (u64, Duration) {
    let began = Instant::now();
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        if let Some(line) =
            fs::read_to_string(&status).unwrap_or_default().lines().find(|line| line.starts_with("VmHWM"))
        {
            most = line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(most);
        }
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    (most, began.elapsed())
}

#[test]
fn memory_does_not_grow_with_the_database() {
    let megabytes = dice::environment("INTERLOCK_BACKUP_MB").unwrap_or(50);
    let sizes = [megabytes / 10, megabytes];
    let mut before: Option<Vec<u64>> = None;
    for size in sizes {
        let place = Place::new();
        filled(&place, size);
        let file = place.path("b.ilbk");
        let elsewhere = Place::bare();
        let most: Vec<u64> = [(&place, "create"), (&place, "verify"), (&elsewhere, "restore")]
            .into_iter()
            .map(|(place, verb)| {
                let mut command = place.command(&["backup", verb]);
                command.arg(&file);
                let (most, time) = measured(command);
                #[allow(clippy::print_stdout, reason = "whoever runs a soak wants to see the numbers")]
                {
                    println!("{verb} of {size} MB: {most} kB at most, {time:.1?}");
                }
                assert!(most < MEMORY_KB_MAX, "{verb} of {size} MB: {most} kB");
                most
            })
            .collect();
        let grown = before.iter().flatten().zip(&most).map(|(before, now)| now.saturating_sub(*before));
        let grown: Vec<u64> = grown.collect();
        assert!(
            grown.iter().all(|kb| *kb < 16 << 10),
            "from {} to {} MB it grew by {grown:?} kB",
            sizes[0],
            sizes[1]
        );
        before = Some(most);
        assert!(elsewhere.texts().len() as u64 == 1000.min(size * 10));
        elsewhere.is_well();
    }
}

#[test]
fn no_room_is_said_in_numbers_before_anything_is_written() {
    let place = Place::new();
    filled(&place, 20);
    let small = place.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=10m,mode=0700"));
    if let Err(error) = mounted {
        #[allow(clippy::print_stdout, reason = "what was not tested must not look tested")]
        {
            println!("no small disk could be mounted ({error}): run the chapter `backup` as root");
        }
        return;
    }
    let text = place.backup("create", &small.join("b.ilbk"), &[], 7);
    let left = names(&small);
    umount2(&small, MntFlags::MNT_DETACH).unwrap();
    assert!(text.contains("need 3") && text.contains(" MB, have 10 MB"), "{text}");
    assert_eq!(left, Vec::<String>::new());
    place.nothing_is_left();
}
