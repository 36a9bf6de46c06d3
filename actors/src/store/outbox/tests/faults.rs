//! A disk that fails at the n-th call, for n = 1, 2, 3 ... until no call is left; and what the system is told before a put is
//! acknowledged. With `strace`.
//!
//! `INTERLOCK_OUTBOX_FAULTS=100 cargo test -p interlock-actors outbox::tests::faults` is the soak size.

use std::{collections::BTreeSet, fs};

use super::{processes::stored, *};
use crate::store::tests::processes::Other;

/// What became of a process that met a fault, or none.
struct Run {
    said: Vec<String>,
    /// How often the fault was injected.
    injected: usize,
}

impl Run {
    /// One process does a few steps under `strace` with these words.
    fn of(place: &Place, traced: &[&str]) -> (Self, String) {
        let log = place.directory.path().join("strace.log");
        let mut under: Vec<String> =
            ["strace", "-f", "-y", "-qq", "-o", log.to_str().unwrap()].map(str::to_owned).to_vec();
        under.extend(traced.iter().map(|word| (*word).to_owned()));
        under.push("--".to_owned());
        let mut other = Other::start_under(&under, "outbox-steps 0 0", place);
        other.release();
        let said = other.said();
        drop(other);
        let log = fs::read_to_string(log).unwrap();
        let injected = log.matches("(INJECTED)").count();
        (Self { said, injected }, log)
    }

    fn is_well(&self) -> bool {
        self.said.iter().filter(|line| line.starts_with("stored ") || line.starts_with("settled ")).count()
            == 4
    }
}

/// What was said is true: the acknowledged are there, the refused are not, what was settled is finished.
fn judge(place: &Place, run: &Run, what: &str) {
    place.check_outbox();
    let found = place.desk().list(&DeliveryFilter::default()).unwrap();
    let present: BTreeSet<Uuid> = found.iter().map(|one| one.id).collect();
    for (id, _) in stored(&run.said) {
        assert!(present.contains(&id), "{what}: acknowledged and not there: {:?}", run.said);
    }
    for line in run.said.iter().filter_map(|line| line.strip_prefix("refused ")) {
        let id: Uuid = line.split(' ').next().unwrap().parse().unwrap();
        assert!(!present.contains(&id), "{what}: refused and there: {:?}", run.said);
        assert!(line.contains(" Disk "), "{what}: {line}");
    }
    for line in run.said.iter().filter_map(|line| line.strip_prefix("settled ")) {
        let number: u64 = line.parse().unwrap();
        let state = found.iter().find(|one| one.number == number).unwrap().state;
        assert_eq!(state, DeliveryState::Acknowledged, "{what}");
    }
    assert!(
        !run.said.iter().any(|line| line.starts_with("failed ") && line.contains("damaged")),
        "{:?}",
        run.said
    );
}

#[test]
fn a_disk_that_fails_at_any_call_is_never_believed_and_nothing_acknowledged_is_lost() {
    let most = std::env::var("INTERLOCK_OUTBOX_FAULTS").ok().and_then(|most| most.parse().ok()).unwrap_or(5);
    // Of the calls of the writing thread alone the most interesting ones come first; the rest is for the soak.
    for (call, error) in [
        ("fsync,fdatasync", "EIO"),
        ("pwrite64", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("fsync,fdatasync", "ENOSPC"),
    ] {
        for for_good in ["", "+"] {
            let place = Place::new();
            place.outbox().close();
            let mut failed = 0;
            for nth in 1..=most {
                let inject = format!("inject={call}:error={error}:when={nth}{for_good}");
                let (run, _) = Run::of(&place, &["-e", &format!("trace={call}"), "-e", &inject]);
                judge(&place, &run, &inject);
                if run.injected == 0 {
                    assert!(run.is_well(), "{inject}: {:?}", run.said);
                    break;
                }
                failed += usize::from(!run.is_well());
                // The disk is well again: so is the outbox, and what it held goes on.
                let (run, _) = Run::of(&place, &["-e", "trace=none"]);
                assert!(run.is_well(), "after {inject}: {:?}", run.said);
            }
            assert!(failed > 0, "{call} {error}: no fault was felt");
        }
    }
}

#[test]
fn a_put_is_acknowledged_after_its_write_ahead_log_was_synced() {
    let place = Place::new();
    place.outbox().close();
    let (run, log) = Run::of(&place, &["-s", "200", "-e", "trace=pwrite64,fsync,fdatasync,write"]);
    assert!(run.is_well(), "{:?}", run.said);
    let (mut unsynced, mut acknowledged) = (false, 0);
    for line in log.lines() {
        let about_wal = line.contains("outbox.db-wal");
        if line.contains("pwrite64(") && about_wal {
            unsynced = true;
        } else if (line.contains("fsync(") || line.contains("fdatasync(")) && about_wal {
            unsynced &= !line.trim_end().ends_with("= 0");
        } else if line.contains("write(1") && line.contains("\"stored ") {
            acknowledged += 1;
            assert!(!unsynced, "acknowledged before it was synced:\n{log}");
        }
    }
    assert_eq!(acknowledged, 3, "{log}");
}

#[test]
fn a_file_that_may_not_grow_refuses_and_keeps_what_it_has() {
    let place = Place::new();
    let outbox = place.outbox();
    (0..5).for_each(|_| _ = put(&outbox, entry("x")));
    outbox.close();
    // In blocks of 1024 bytes; the signal that would end the process is ignored, as in the runtime.
    let shell = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let under = ["bash", "-c", shell, "bash"].map(str::to_owned);
    let mut other = Other::start_under(&under, "outbox-steps 0 0", &place);
    other.release();
    let run = Run { said: other.said(), injected: 1 };
    assert!(!run.is_well(), "{:?}", run.said);
    place.check_outbox();
    let found = place.desk().list(&DeliveryFilter::default()).unwrap().len();
    assert_eq!(found, 5 + stored(&run.said).count(), "{:?}", run.said);
    put(&place.outbox(), entry("room again"));
}
