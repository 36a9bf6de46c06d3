use std::{path::Path, sync::Arc, thread, time::Duration};

use interlock_bus::{
    Client, Credentials, PeerName, Permissions,
    blocking::wait,
    client::ConnectOptions,
    durable::{MemoryStorage, Outbox, OutboxOptions, Routes, Schedule, memory::MemoryLimits},
};

use crate::harness::{DEADLINE, TestBroker, TestProcess};

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
    assert_eq!(held, 11, "claims that held");
    broker.handle.stop(Duration::from_secs(1));
    assert_eq!(script.line(), "everything in hand ended");
    assert_eq!(script.exit_code(), Some(0));
}

#[test]
fn the_python_module_publishes_and_consumes_durably_and_each_effect_happens_once() {
    let broker = TestBroker::start();
    let shop = broker.enrol("shop", &[], &[], &[], &["outbox/put/#", "inbox/books/#"]);
    let books = broker.enrol("books", &[], &[], &["inbox/books/#"], &["outbox/consume/v1"]);
    let outbox = broker.enrol("outbox", &[], &[], &["outbox/#"], &["inbox/#"]);
    let credentials = Credentials::load(&outbox).unwrap();
    let client = Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap();
    let limits = MemoryLimits { pending_max: 5, ..MemoryLimits::default() };
    let routes = [("orders/#", "books"), ("closed/#", "closed")]
        .map(|(filter, consumer)| (filter.parse().unwrap(), vec![consumer.parse().unwrap()]));
    let schedule = Schedule { base: Duration::from_millis(10), ..Schedule::default() };
    let options = OutboxOptions { schedule, ..OutboxOptions::default() };
    let outbox = Outbox::new(client, Arc::new(MemoryStorage::new(limits)), Routes::new(routes), options);
    let mut reports = outbox.handle("test".parse().unwrap()).watch();
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(outbox.run(async { drop(stopping.await) }, |_| ()))
    });
    wait(reports.wait_for(|report| report.state != Default::default())).unwrap();

    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python/interlock.py");
    let paths =
        [&module, &shop, &books, broker.directory.path()].map(|path| path.to_str().unwrap().to_owned());
    let mut script = TestProcess::python("durable.py", &paths.each_ref().map(String::as_str));
    let held = std::iter::from_fn(|| Some(script.line()).filter(|line| line != "done")).count();
    assert_eq!(held, 8, "claims that held");
    assert_eq!(script.exit_code(), Some(0));
    drop(stop);
    // What is for nobody who serves is still there.
    assert_eq!(serving.join().unwrap().unwrap().open, Some(5));
}
