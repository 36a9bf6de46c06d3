use std::{path::Path, time::Duration};

use interlock_bus::{Credentials, PeerName, Permissions};

use crate::harness::{TestBroker, TestProcess};

#[test]
fn the_python_module_does_all_that_it_says_and_ends_everything_with_its_session() {
    let broker = TestBroker::start();
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/interlock.py");
    let alice = broker.enrol("alice", &["room/#"], &[], &[], &["room/#"]);
    let mut permissions = Permissions::from_lists(&[], &["room/#"], &["room/#"], &[]).unwrap();
    permissions.wait = true;
    let bob: PeerName = "bob".parse().unwrap();
    broker.store.issue(&bob, &permissions, broker.handle.endpoints(), None).unwrap();
    let bob = Credentials::path_in(&broker.keys(), &bob);
    let arguments = [module.to_str().unwrap(), alice.to_str().unwrap(), bob.to_str().unwrap()];
    let mut script = TestProcess::python("module.py", &arguments);
    let mut held = 0;
    loop {
        match script.line().as_str() {
            "lost" => break,
            _ => held += 1,
        }
    }
    assert_eq!(held, 10, "claims that held");
    broker.handle.stop(Duration::from_secs(1));
    assert_eq!(script.line(), "everything in hand ended");
    assert_eq!(script.exit_code(), Some(0));
}
