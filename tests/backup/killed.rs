//! Kills, suspicious disks, and what the next command finds.
//!
//! `INTERLOCK_BACKUP_KILLS=200 cargo test -p interlock-tests backup::killed -- --nocapture` is the soak size.

use std::time::Duration;

use super::*;
use crate::harness::dice::{self, Dice};

/// Kills of each sweep: some by default.
fn kills() -> u64 {
    dice::environment("INTERLOCK_BACKUP_KILLS").unwrap_or(3)
}

/// How long a run takes that nobody kills.
fn duration(command: &mut Command) -> Duration {
    let began = std::time::Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    began.elapsed()
}

/// Starts `command` and kills it at some point of that time.
fn kill_within(mut command: Command, duration: Duration, dice: &mut Dice) {
    let mut child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(duration.mul_f64(dice.below(1000) as f64 / 900.0));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_backup_killed_at_any_moment_leaves_the_old_one_or_the_new_one_and_the_next_run_wipes_the_rest() {
    let mut dice = Dice(dice::seed("backup::killed"));
    let place = Place::new();
    place.say("in the first");
    let (file, first) = (place.path("b.ilbk"), place.path("first.ilbk"));
    let duration = duration(place.command(&["backup", "create"]).arg(&file));
    let good = fs::read(&file).unwrap();
    for _ in 0..kills() {
        fs::write(&file, &good).unwrap();
        let mut command = place.command(&["backup", "create"]);
        command.arg(&file);
        kill_within(command, duration, &mut dice);
        if fs::read(&file).unwrap() != good {
            place.backup("verify", &file, &["--drill"], 0);
        }
        place.is_well();
        let left = names(&place.data).iter().filter(|name| name.contains(".tmp-")).count();
        let text = place.backup("create", &first, &[], 0);
        assert_eq!(text.contains("had been interrupted"), left > 0, "{left} left: {text}");
        // What lies beside a backup is found by the next one that goes there.
        place.nothing_is_left();
        fs::remove_file(&first).unwrap();
    }
}

#[test]
fn a_backup_that_is_asked_to_stop_leaves_nothing_and_says_so() {
    let place = Place::new();
    place.say("one");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut command = place.command(&["backup", "create", "--json"]);
        command.arg(place.path("b.ilbk"));
        let mut process = crate::harness::TestProcess::spawn(command);
        // The first word is that it has begun, and that signals are heard.
        process.json();
        process.signal(signal);
        let exit = process.exit_code();
        // It may have been faster.
        assert!(exit == Some(1) || (exit == Some(0) && place.path("b.ilbk").exists()), "{exit:?}");
        place.nothing_is_left();
    }
}

/// What an installation is: old or new, and nothing between.
fn is_complete(place: &Place, old: &str, new: &str) -> bool {
    place.is_well();
    let texts = place.texts();
    let marker = fs::read_to_string(place.data.join("keys/who.toml")).unwrap_or_default();
    assert!(texts == [old] || texts == [new], "{texts:?}");
    assert_eq!(marker == "new", texts == [new], "the database is of one, the key store of the other");
    texts == [new]
}

#[test]
fn a_restore_killed_at_any_moment_leaves_the_old_or_the_new_installation_whole() {
    let mut dice = Dice(dice::seed("backup::killed"));
    let file = {
        let place = Place::new();
        place.say("new");
        let who = place.data.join("keys/who.toml");
        fs::write(&who, "new").unwrap();
        fs::set_permissions(&who, fs::Permissions::from_mode(0o600)).unwrap();
        let file = place.path("b.ilbk");
        place.backup("create", &file, &[], 0);
        (place, file)
    };
    let (_kept, file) = &file;
    let prepare = || {
        let place = Place::new();
        place.say("old");
        place
    };
    let place = prepare();
    let duration = duration(place.command(&["backup", "restore"]).arg(file));
    assert!(is_complete(&place, "old", "new"));
    let mut finished = 0;
    for _ in 0..kills() {
        let place = prepare();
        let mut command = place.command(&["backup", "restore"]);
        command.arg(file);
        kill_within(command, duration, &mut dice);
        finished += u64::from(place.data.join("restore.pending").exists());
        is_complete(&place, "old", "new");
        assert!(!place.data.join("restore.pending").exists());
        // And it can be done again.
        place.backup("restore", file, &[], 0);
        assert!(is_complete(&place, "old", "new"));
        place.nothing_is_left();
    }
    #[allow(clippy::print_stdout, reason = "whoever runs a soak wants to know what it met")]
    {
        println!("{finished} restores were finished by the next command");
    }
}

/// Runs `command` and lets the `n`-th call of these names fail, or kills it there.
fn with_fault(command: &Command, calls: &str, fault: &str, n: u64, file: &Path) -> Output {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null"]);
    traced.arg("-e").arg(format!("trace={calls}"));
    traced.arg("-e").arg(format!("inject={calls}:{fault}:when={n}"));
    traced.arg(command.get_program()).args(command.get_args()).arg(file);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced.output().unwrap()
}

/// The first calls each, and then by steps, until a run succeeds untouched; `INTERLOCK_BACKUP_KILLS` above 100 takes each.
fn sweep(mut run: impl FnMut(u64) -> bool) {
    let step = if kills() > 100 { 1 } else { 12 };
    let mut n = 1;
    while !run(n) {
        n += step;
        assert!(n < 5000, "it never succeeded");
    }
}

#[test]
fn a_disk_that_is_full_or_fails_at_any_write_leaves_the_old_backup() {
    let place = Place::new();
    place.say("one");
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let good = fs::read(&file).unwrap();
    for (calls, fault) in [
        ("write", "error=ENOSPC"),
        ("fsync", "error=EIO"),
        ("rename", "error=EIO"),
        ("pwrite64", "error=EIO"),
    ] {
        sweep(|n| {
            fs::write(&file, &good).unwrap();
            let output = with_fault(&place.command(&["backup", "create"]), calls, fault, n, &file);
            let is_new = fs::read(&file).unwrap() != good;
            let is_done = output.status.success();
            // Never an error that is not one, never a success without the artefact.
            if is_done || is_new {
                place.backup("verify", &file, &[], 0);
            }
            if is_done {
                assert!(is_new, "{calls} {n}: {}", said(&output));
            }
            place.is_well();
            if is_done && is_new {
                place.backup("list", place.directory.path(), &[], 0);
            }
            is_done
        });
    }
    place.backup("create", &file, &[], 0);
    place.nothing_is_left();
}

#[test]
fn a_restore_killed_at_each_of_its_renames_is_finished_or_was_not_begun() {
    let origin = Place::new();
    origin.say("new");
    let who = origin.data.join("keys/who.toml");
    fs::write(&who, "new").unwrap();
    fs::set_permissions(&who, fs::Permissions::from_mode(0o600)).unwrap();
    let file = origin.path("b.ilbk");
    origin.backup("create", &file, &[], 0);
    let (mut old, mut finished) = (0, 0);
    for calls in ["rename", "link", "unlink"] {
        let mut n = 1;
        loop {
            let place = Place::new();
            place.say("old");
            let output = with_fault(&place.command(&["backup", "restore"]), calls, "signal=KILL", n, &file);
            if output.status.success() {
                assert!(is_complete(&place, "old", "new"));
                break;
            }
            let is_pending = place.data.join("restore.pending").exists();
            let is_new = is_complete(&place, "old", "new");
            assert!(is_new || !is_pending, "{calls} {n}: a restore that had begun was not finished");
            (old, finished) = (old + u64::from(!is_new), finished + u64::from(is_pending));
            place.backup("restore", &file, &[], 0);
            place.nothing_is_left();
            n += if kills() > 100 { 1 } else { 2 };
            assert!(n < 200, "it never succeeded");
        }
    }
    assert!(old > 0 && finished > 1, "{old} left the old one, {finished} were finished by the next command");
}
