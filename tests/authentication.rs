use serde_json::json;

use crate::harness::{TestBroker, TestProcess, eventually};

#[test]
fn a_stock_client_learns_of_a_wrong_server_key_an_unknown_key_and_a_revoked_one() {
    let broker = TestBroker::start();
    let stranger = TestBroker::start();
    let observer = broker.enrol("observer", &[], &[], &[], &["$sys/broker/#"]);
    let member = broker.enrol("member", &["a"], &[], &[], &[]);
    let foreign = stranger.enrol("foreign", &["a"], &[], &[], &[]);
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| TestProcess::python("stock.py", arguments).json();

    // A key of another installation's broker.
    let wrong_key = stranger.handle.public_key().to_string();
    assert_eq!(
        run(&["refused", &path(&member), "PUB", &wrong_key]),
        json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 500}),
    );
    // A key this broker has never seen.
    let foreign_file = std::fs::read_to_string(&foreign).unwrap();
    let relocated = foreign_file
        .replace(&stranger.handle.endpoints()[0].to_string(), &broker.handle.endpoints()[0].to_string());
    let unknown = stranger.directory.path().join("unknown.toml");
    std::fs::write(&unknown, relocated).unwrap();
    assert_eq!(
        run(&["refused", &path(&unknown), "DEALER", &broker.handle.public_key().to_string()]),
        json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400}),
    );
    // A revoked one: the edit applies to the running broker.
    broker.store.revoke(&"member".parse().unwrap()).unwrap();
    eventually("the revocation", || {
        let outcome = run(&["refused", &path(&member), "SUB"]);
        (outcome == json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400})).then_some(())
    });
    // No CURVE at all.
    assert_ne!(run(&["plaintext", &path(&member)])["event"], "HANDSHAKE_SUCCEEDED");

    let answer = run(&["req", &path(&observer), "$sys/broker/refusals", ""]);
    let refusals: serde_json::Value = serde_json::from_str(answer["frames"][1].as_str().unwrap()).unwrap();
    for code in ["wrong_server_key", "unknown_key", "revoked_key", "not_curve"] {
        assert!(refusals["counts"][code].as_u64() >= Some(1), "{code} is not counted: {refusals}");
    }
}
