use std::{collections::HashSet, process::Command};

use interlock_bus::{
    BrokerConfig, Client, ConnectOptions, Credentials, KeyStore, Permissions, crypto::KeyPair, zmtp,
};

use crate::harness::{
    DEADLINE, TestProcess, eventually,
    runtime::{TestRuntime, tool},
};

/// Whether `text` shows twelve characters of a secret.
fn shows(text: &str, secret: &KeyPair) -> bool {
    let z85 = secret.secret.expose_z85();
    let windows = (0..z85.len() - 12).map(|at| z85[at..at + 12].to_owned());
    windows.into_iter().any(|window| text.contains(&window))
}

#[test]
fn no_type_that_holds_a_key_shows_it_by_debug() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
    let endpoints = vec!["tcp://127.0.0.1:1".parse().unwrap()];
    let issued = store.issue(&"member".parse().unwrap(), &permissions, &endpoints, None).unwrap();
    store.rotate_broker_keys(DEADLINE).unwrap();
    let config = BrokerConfig::from_key_store(&store, endpoints).unwrap();
    let metadata = zmtp::Metadata::new(&zmtp::SocketType::Dealer);
    let client = zmtp::ClientConfig::new(issued.keys.clone(), issued.broker, metadata);
    let server = zmtp::ServerConfig::new(config.keys.pairs());
    let mut engine = zmtp::Engine::client(client.clone());
    engine.output().clear();
    let shown = [
        format!("{issued:?}"),
        format!("{:?}", ConnectOptions::new(issued.clone())),
        format!("{store:?} {config:?}"),
        format!("{client:?} {server:?} {engine:?}"),
        format!("{:?} {:?}", zmtp::Engine::server(server.clone().into()), config.keys),
    ];
    let mut secrets = config.keys.pairs();
    secrets.push(issued.keys);
    for text in shown {
        assert!(text.len() > 10 && secrets.iter().all(|secret| !shows(&text, secret)), "{text}");
        // A derived `Debug` would print the bytes of a key as a list of numbers.
        let is_number = |word: &&str| word.trim_matches(['[', ']']).parse::<u8>().is_ok();
        let words: Vec<&str> = text.split(", ").collect();
        assert!(!words.windows(16).any(|words| words.iter().all(is_number)), "{text}");
    }
}

#[test]
fn the_output_of_a_whole_run_holds_no_secret_and_its_processes_leave_no_core() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = TestRuntime::start();
    let mut issue = tool("interlock");
    issue.arg("--data-dir").arg(runtime.data()).args(["keys", "issue", "guest", "--publish", "a"]);
    assert!(issue.output().unwrap().status.success());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", runtime.process.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    // Everything that is said, at the highest level, while clients come, are refused, and keys change.
    let guest = Credentials::load(&runtime.data().join("keys/guest.toml")).unwrap();
    let mut said = Vec::new();
    let mut run = |program: &str, arguments: &[&str]| {
        let mut command: Command = tool(program);
        command.arg("--data-dir").arg(runtime.data()).args(arguments).env("RUST_LOG", "trace");
        let output = command.output().unwrap();
        said.extend([output.stdout, output.stderr].concat());
    };
    run("bus", &["peers", "--json"]);
    run("interlock", &["keys", "list"]);
    run("interlock", &["keys", "rotate", "--broker"]);
    run("interlock", &["keys", "revoke", "guest"]);
    let stranger = Credentials { keys: KeyPair::generate(), file: None, ..guest.clone() };
    let file = directory.path().join("stranger.toml");
    stranger.save(&file).unwrap();
    assert_eq!(
        TestProcess::python("stock.py", &["refused", file.to_str().unwrap(), "SUB"]).json()["value"],
        400
    );
    run("bus", &["auth"]);
    run("bus", &["audit"]);
    run("interlock", &["logs", "--limit", "1000"]);
    let mut secrets = KeyStore::open(&runtime.data().join("keys")).unwrap().broker_keys().unwrap().pairs();
    let names: HashSet<_> = std::fs::read_dir(runtime.data().join("keys"))
        .unwrap()
        .flatten()
        .collect::<Vec<_>>()
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    secrets.extend(names.iter().filter_map(|path| Credentials::load(path).ok()).map(|held| held.keys));
    secrets.extend([stranger.keys, guest.keys]);
    assert!(secrets.len() > 8, "{} secrets", secrets.len());
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.len() > 500, "{said}");
    assert!(secrets.iter().all(|secret| !shows(&said, secret)), "a secret was said");
}

#[test]
fn the_key_of_a_program_is_void_when_the_program_has_been_stopped() {
    let place = tempfile::tempdir().unwrap();
    let told = place.path().join("credentials");
    let script = format!(
        "umask 077; cat /proc/self/fd/$INTERLOCK_CREDENTIALS_FD > {}; echo told; exec sleep 1000",
        told.display()
    );
    let runtime = TestRuntime::start_with(&format!(
        "[[program]]\nname = \"teller\"\ncommand = \"sh\"\nargs = [\"-c\", \"{script}\"]\nreadiness = \"line:told\"\npublish = [\"teller/#\"]\n"
    ));
    let credentials = Credentials::load(&told);
    let options = || ConnectOptions::new(credentials.as_ref().unwrap().clone()).timeout(DEADLINE);
    let thief = Client::connect_blocking(options()).unwrap();
    assert!(runtime.interlock(&["stop", "teller"]).status.success());
    let reason = eventually("the session of the thief to end", || thief.closed_reason());
    assert!(reason.contains("the incarnation of this key has ended"), "{reason}");
    Client::connect_blocking(options()).unwrap_err();
}

/// Everything that this process can write to: where a secret would lie.
fn memory(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut region = vec![0; (to - from) as usize];
        // Some regions are gone meanwhile, or are the kernel's.
        if let Ok(bytes) = memory.read_at(&mut region, from) {
            all.extend_from_slice(&region[..bytes]);
        }
    }
    all
}

fn holds(memory: &[u8], text: &str) -> bool {
    let first = text.as_bytes()[0];
    let is_there = |at: usize| memory[at..].starts_with(text.as_bytes());
    memory.iter().enumerate().any(|(at, byte)| *byte == first && is_there(at))
}

#[test]
fn a_running_runtime_has_neither_passphrase_nor_the_text_of_a_key_in_memory_arguments_or_environment() {
    const PASSPHRASE: &str = "wunderbar horse battery";
    let mut runtime = TestRuntime::start();
    let file = runtime.directory.path().join("passphrase");
    std::fs::write(&file, PASSPHRASE).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let path = file.to_str().unwrap();
    assert!(runtime.interlock(&["keys", "passphrase", "--new-passphrase-file", path]).status.success());
    assert!(runtime.interlock(&["stop"]).status.success());
    let mut command = TestRuntime::command(runtime.directory.path());
    command.env("INTERLOCK_PASSPHRASE_FILE", &file);
    runtime.process = TestProcess::spawn(command);
    runtime.wait_until_ready();

    let keys = runtime.data().join("keys");
    let mut texts = vec![PASSPHRASE.to_owned()];
    let mut origins = vec!["the passphrase".to_owned()];
    for entry in std::fs::read_dir(&keys).unwrap() {
        let path = entry.unwrap().path();
        // One that was being written is gone meanwhile.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let secrets = text.lines().filter_map(|line| line.strip_prefix("secret_key = "));
        texts.extend(secrets.map(|secret| secret.trim_matches(['"', '\'']).to_owned()));
        origins.resize(texts.len(), path.display().to_string());
    }
    assert!(texts.len() > 7, "{} secrets", texts.len());
    let pid = runtime.process.id();
    for pid in runtime.processes().into_iter().chain([pid]) {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(texts.iter().all(|secret| !holds(&text, secret)), "{file} of {pid}");
        }
    }
    // Only root can look at all: to others the process is not theirs any more.
    if !nix::unistd::geteuid().is_root() {
        std::fs::File::open(format!("/proc/{pid}/mem")).unwrap_err();
        return;
    }
    // Credentials that are being written at this moment are on their way through it.
    eventually("the text of every secret to be gone", || {
        let memory = memory(pid);
        assert!(holds(&memory, "interlock.db"), "the memory was not read");
        let mut found = texts.iter().zip(&origins).filter(|(text, _)| holds(&memory, text)).peekable();
        found.peek().is_none().then_some(())
    });
}
