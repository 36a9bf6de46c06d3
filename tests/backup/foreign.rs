//! Another implementation: PyNaCl opens our file, and we open its.

use super::*;
use crate::harness::TestProcess;

#[test]
fn pynacl_opens_our_backup_and_we_restore_what_pynacl_sealed() {
    let place = Place::new();
    place.say("said in Rust");
    let (ours, theirs) = (place.path("ours.ilbk"), place.path("theirs.ilbk"));
    place.backup("create", &ours, &[], 0);
    let passphrase = place.path("passphrase");
    let paths = [&ours, &theirs, &passphrase].map(|path| path.to_str().unwrap());
    // It opens ours, checks each digest, and seals the same content anew, with chunks of 64 KiB and a cheaper key.
    let opened = TestProcess::python("backup.py", &paths).json();
    assert_eq!(opened["parts"], serde_json::json!(count_of_parts(&place, &ours)), "{opened}");
    assert_eq!(opened["database_begins_plain"], false);
    let elsewhere = Place::bare();
    elsewhere.backup("verify", &theirs, &[], 0);
    elsewhere.backup("restore", &theirs, &[], 0);
    assert_eq!(elsewhere.texts(), ["said in Rust"]);
    elsewhere.is_well();
}

fn count_of_parts(place: &Place, file: &Path) -> usize {
    let told = place.backup("verify", file, &["--json"], 0);
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    last["result"]["contents"]["parts"].as_array().unwrap().len()
}
