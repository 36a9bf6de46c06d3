use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use tempfile::TempDir;
use uuid::Uuid;

use super::*;

fn data_dir() -> (TempDir, DataDir) {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = DataDir::at(directory.path().join("data"));
    (directory, data_dir)
}

fn instance() -> Instance {
    Instance {
        instance: Uuid::new_v4(),
        pid: std::process::id(),
        version: "0.1.0".to_owned(),
        started_at: jiff::Timestamp::now(),
        endpoints: vec!["tcp://127.0.0.1:5555".parse().unwrap()],
        gateway: Some("http://127.0.0.1:8771".to_owned()),
        config: None,
    }
}

#[test]
fn what_is_made_is_private() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    for path in [data_dir.root().to_owned(), data_dir.run()] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn a_directory_with_content_that_others_can_read_is_refused() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    fs::set_permissions(data_dir.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = data_dir.create().unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
    assert_eq!(error.exit(), Exit::Misuse);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let (guard, _) = data_dir();
    let file = guard.path().join("file");
    fs::write(&file, "").unwrap();
    let error = DataDir::at(file.join("data")).create().unwrap_err();
    assert!(error.to_string().contains("file/data"), "{error}");
    assert_eq!(error.exit(), Exit::Io);
}

#[test]
fn a_second_instance_is_refused_with_the_pid_of_the_first_and_admitted_after_it() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    assert!(!InstanceLock::is_held(&data_dir));
    let lock = InstanceLock::take(&data_dir).unwrap();
    assert!(InstanceLock::is_held(&data_dir));
    let error = InstanceLock::take(&data_dir).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(error.exit(), Exit::Busy);
    drop(lock);
    InstanceLock::take(&data_dir).unwrap();
}

#[test]
fn a_restore_that_holds_the_lock_is_told_as_one() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    let lock = InstanceLock::take_for_restore(&data_dir).unwrap();
    for error in [InstanceLock::take(&data_dir).unwrap_err(), running(&data_dir).unwrap_err()] {
        assert!(error.to_string().contains("a restore into"), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        assert_eq!(error.exit(), Exit::Busy);
    }
    drop(lock);
    let lock = InstanceLock::take(&data_dir).unwrap();
    let error = InstanceLock::take_for_restore(&data_dir).unwrap_err();
    assert!(error.to_string().contains("already running"), "{error}");
    drop(lock);
}

#[test]
fn looking_for_an_instance_creates_nothing() {
    let (_guard, data_dir) = data_dir();
    assert!(running(&data_dir).unwrap().is_none());
    assert!(!data_dir.root().exists());
}

#[test]
fn an_instance_is_found_while_its_lock_is_held_and_not_by_its_file_alone() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    let lock = InstanceLock::take(&data_dir).unwrap();
    let error = running(&data_dir).unwrap_err();
    assert_eq!(error.exit(), Exit::NotReady, "{error}");
    let file = InstanceFile::write(&data_dir, &instance()).unwrap();
    assert_eq!(running(&data_dir).unwrap().unwrap().pid, std::process::id());
    drop(lock);
    assert!(running(&data_dir).unwrap().is_none());
    drop(file);
    assert!(!data_dir.run().join("instance.json").exists());
}

async fn gone(file: &std::path::Path) {
    while file.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn a_shutdown_file_counts_only_for_its_own_instance_and_never_stays() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    let file = data_dir.run().join(STOP_FILE);
    let id = Uuid::new_v4();
    in_runtime(async {
        fs::write(&file, Uuid::new_v4().to_string()).unwrap();
        let (mut signals, stale) = StopSignals::listen(&data_dir.run(), id).unwrap();
        assert!(stale.is_some() && !file.exists());

        fs::write(&file, "another instance").unwrap();
        tokio::select! {
            reason = signals.next() => panic!("stopped by {reason}"),
            () = gone(&file) => {}
        }

        fs::write(&file, format!("{id}\n")).unwrap();
        let reason = tokio::time::timeout(Duration::from_secs(10), signals.next()).await.unwrap();
        assert_eq!(reason, StopReason::File);
        assert!(!file.exists());
    });
}

#[test]
fn a_request_inside_the_process_stops_it() {
    let (_guard, data_dir) = data_dir();
    data_dir.create().unwrap();
    in_runtime(async {
        let (mut signals, _) = StopSignals::listen(&data_dir.run(), Uuid::new_v4()).unwrap();
        signals.requester().send(StopReason::Request("operator".to_owned())).await.unwrap();
        assert_eq!(signals.next().await, StopReason::Request("operator".to_owned()));
    });
}

#[test]
fn the_service_unit_waits_longer_than_the_longest_stop_and_start() {
    let unit = include_str!("../../interlock.service");
    let seconds = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        Duration::from_secs(line.parse().unwrap())
    };
    let forced = crate::config::Config::defaults().shutdown.forced;
    assert!(seconds("TimeoutStopSec=") > forced + WATCHDOG_SLACK);
    assert!(seconds("TimeoutStartSec=") > crate::run::REPORT_AFTER_MAX);
    let codes =
        |exits: &[Exit]| exits.iter().map(|exit| exit.code().to_string()).collect::<Vec<_>>().join(" ");
    let final_ones = codes(&[Exit::Misuse, Exit::Denied, Exit::Damaged, Exit::Version]);
    assert!(unit.contains(&format!("RestartPreventExitStatus={final_ones}\n")), "{final_ones}");
    assert!(unit.contains(&format!("SuccessExitStatus={}\n", codes(&[Exit::Pending]))));
}
