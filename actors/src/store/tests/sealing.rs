//! The seal of the data key is changed by a process that is killed at any instant.

use interlock_bus::crypto::PassphraseCost;

use super::{
    processes::{Other, random, rounds},
    *,
};
use crate::store::key::{KeyWrap, NewWrap};

const CHEAP: PassphraseCost = PassphraseCost { passes: 1, memory_kib: 8 };
const PASSPHRASES: [&str; 2] = ["passphrase one", "passphrase two"];

fn file(place: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = place.join(text);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The vault of a process that was given this passphrase, if one is needed.
fn vault(place: &Path, passphrase: &str) -> Vault {
    let is_sealed = matches!(DataKey::wrap(&place.join("keys")), Ok(Some(KeyWrap::Passphrase { .. })));
    let flag = is_sealed.then(|| file(place, passphrase));
    Vault::new(
        place.join("keys"),
        place.join(DATABASE_FILE),
        PassphraseSources { flag, ..Default::default() },
    )
}

/// What the child does: one passphrase, the other, none, without end.
pub(super) fn reseal(place: &Path, say: &dyn Fn(String)) {
    let mut key = PASSPHRASES.iter().find_map(|text| vault(place, text).open().ok()).unwrap();
    loop {
        for text in PASSPHRASES {
            let passphrase = Passphrase::from_file(&place.join(text)).unwrap();
            key.reseal(&NewWrap::Passphrase(&passphrase, CHEAP)).unwrap();
        }
        key.reseal(&NewWrap::KeyStore).unwrap();
        say("sealed\n".to_owned());
    }
}

#[test]
fn a_process_killed_while_it_changes_the_seal_leaves_exactly_one_that_opens() {
    let place = Place::new();
    let store = place.open();
    let key = place.key().derive("to compare");
    for text in PASSPHRASES {
        file(place.directory.path(), text);
    }
    let mut found = std::collections::BTreeMap::<String, usize>::new();
    for round in 0..rounds(25) {
        let mut other = Other::start("reseal", &place);
        other.release();
        assert_eq!(other.line(), "sealed", "round {round}");
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(Duration::from_micros(random(20_000)));
        other.kill();
        let opens = |text: &str| match vault(place.directory.path(), text).open() {
            Ok(opened) => {
                assert_eq!(opened.derive("to compare"), key, "round {round}: another key");
                true
            }
            Err(StoreError::WrongPassphrase { .. }) => false,
            Err(error) => panic!("round {round}: {error}"),
        };
        let wrap = DataKey::wrap(&place.keys()).unwrap().unwrap();
        let which = PASSPHRASES.map(opens);
        match wrap {
            KeyWrap::KeyStore => assert_eq!(which, [true, true], "round {round}: no passphrase was needed"),
            _ => assert!(which == [true, false] || which == [false, true], "round {round}: {which:?}"),
        }
        *found.entry(format!("{} {which:?}", wrap.as_str())).or_default() += 1;
    }
    // Next time nothing is left of those that were killed, and the store has noticed nothing.
    vault(place.directory.path(), PASSPHRASES[0])
        .open()
        .or_else(|_| vault(place.directory.path(), PASSPHRASES[1]).open())
        .unwrap()
        .reseal(&NewWrap::KeyStore)
        .unwrap();
    let mut left: Vec<_> =
        fs::read_dir(place.keys()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["audit.jsonl", "data.key", "wrap.key"], "{found:?}");
    wait(store.append(vec![record("text")])).unwrap();
    store.close();
    place.reader().check().unwrap();
}
