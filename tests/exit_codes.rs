//! What the two programs end with: each code, from the real binary, for the reason that the table gives.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use interlock_bus::Credentials;

use crate::harness::runtime::{CONFIG, TestRuntime, tool};

/// Runs a command that must end with `code`; what it said to standard error.
fn ends(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    said
}

fn interlock(arguments: &[&str], data: &Path) -> Command {
    let mut command = tool("interlock");
    command.args(arguments).arg("--data-dir").arg(data);
    command
}

#[test]
fn help_and_readme_hold_the_one_table() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let [readme, map] = [readme, map].map(|path| std::fs::read_to_string(path).unwrap());
    for program in ["interlock", "bus"] {
        let output = tool(program).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for exit in interlock_bus::exit::Exit::ALL {
            let (code, meaning) = (exit.code(), exit.meaning());
            assert!(help.contains(&format!("  {code:>2}  {meaning}\n")), "{program}: {code}: {help}");
            assert!(readme.contains(&format!("| {code} | {meaning} |")), "README: {code}");
            assert!(map.contains(&format!("| {code} | {meaning} |")), "ARCHITECTURE: {code}");
        }
    }
}

#[test]
fn what_needs_no_running_instance_ends_with_the_code_of_its_reason() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    ends(interlock(&["check"], &data), 0);
    assert!(
        ends(interlock(&["check", "--set", "gateway.workers=0"], &data), 2).contains("`gateway.workers`")
    );
    assert!(ends(interlock(&["rum"], &data), 2).contains("rum"));
    assert!(ends(interlock(&["status"], &data), 3).contains("nothing runs on"));
    assert!(ends(interlock(&["keys", "list"], Path::new("/proc/interlock")), 6).contains("/proc/interlock"));
    let mut full = interlock(&["config", "show"], &data);
    full.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    assert!(ends_with(full, 7).contains("standard output"));

    for (program, flag) in [("interlock", "--help"), ("interlock", "--version"), ("bus", "--help")] {
        let mut help = tool(program);
        help.arg(flag).stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let said = ends_with(help, 7);
        assert!(said.starts_with(&format!("{program}: cannot write")), "{program} {flag}: {said}");
    }

    // Nobody yet.
    let nobody = place.path().join("nobody");
    interlock_bus::KeyStore::open_or_create(&nobody.join("keys")).unwrap();
    let list = |arguments: &[&str]| {
        let output = interlock(arguments, &nobody).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = list(&["keys", "list"]);
    assert!(said.contains("no peer is enrolled") && said.contains("`interlock keys issue NAME "), "{said}");
    assert_eq!(list(&["keys", "list", "--json"]), "");

    // A database that is none.
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
    ends(interlock(&["keys", "issue", "guest", "--publish", "a"], &data), 0);
    std::fs::write(data.join("keys/authorized.toml"), "this is no registry").unwrap();
    assert!(ends(interlock(&["keys", "list"], &data), 8).contains("authorized.toml"));
}

/// Like [`ends`], for a command whose standard output is something of its own.
fn ends_with(mut command: Command, code: i32) -> String {
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code), "{command:?}: {said}");
    said
}

#[test]
fn what_asks_a_running_instance_ends_with_the_code_of_its_answer() {
    let mut runtime = TestRuntime::start();
    let data = runtime.data();
    ends(interlock(&["status"], &data), 0);
    // No data.
    ends(interlock(&["logs", "--text", "nobody ever logs this"], &data), 1);
    ends(interlock(&["restart", "nobody"], &data), 2);
    // Somebody else is here.
    std::fs::write(runtime.directory.path().join("other.toml"), CONFIG).unwrap();
    let other = runtime.directory.path().join("other.toml");
    assert!(
        ends(interlock(&["run", "--config", other.to_str().unwrap()], &data), 5).contains("already running")
    );
    // May not, or is not who it says.
    ends(interlock(&["keys", "issue", "guest", "--publish", "guest/#"], &data), 0);
    let guest = data.join("keys/guest.toml");
    let publish = |file: &Path, topic: &str| {
        let mut command = tool("bus");
        command.arg("--creds").arg(file).args(["pub", topic, "hello"]);
        command
    };
    ends(publish(&guest, "guest/a"), 0);
    assert!(ends(publish(&guest, "other/a"), 4).contains("other/a"));

    // Whoever answers there speaks something else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut credentials = Credentials::load(&guest).unwrap();
    credentials.endpoints = vec![format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap()];
    let stranger = data.join("keys/stranger.toml");
    credentials.save(&stranger).unwrap();
    std::thread::spawn(move || {
        // Every try gets the same answer, and nobody hangs up. The thread ends with the test's process.
        let mut connections = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
            connections.push(connection);
        }
    });
    ends(publish(&stranger, "guest/a"), 9);
    runtime.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    // 10 and 11: `stopping.rs`.
}
