use std::os::unix::fs::PermissionsExt;

use interlock_bus::crypto::PassphraseCost;

use super::*;
use crate::store::passphrase::{Passphrase, PassphraseSources};

/// The least there is: what is tested is not how long guessing takes.
const CHEAP: PassphraseCost = PassphraseCost { passes: 1, memory_kib: 8 };

fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let (keys, database) = (place.path().join("deep/keys"), place.path().join("interlock.db"));
    (place, keys, database)
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), "a test").unwrap()
}

fn names(keys: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(keys).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Opens with this passphrase.
fn open_with(keys: &Path, database: &Path, text: &str) -> Result<DataKey, StoreError> {
    DataKey::load_with(keys, database, &|_| Ok(passphrase(text)))
}

#[test]
fn the_key_is_made_once_sealed_private_and_read_back() {
    let (_place, keys, database) = place();
    let made = DataKey::load_or_create(&keys, &database).unwrap();
    let read = DataKey::load_or_create(&keys, &database).unwrap();
    assert_eq!(*made.bytes, *read.bytes);
    assert_eq!(made.derive("journal"), read.derive("journal"));
    assert!(made.derive("journal") != made.derive("backup") && *made.derive("") != *made.bytes);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&keys), mode(&keys.join(KEY_FILE))), (0o700, 0o600));
    assert_eq!(mode(&keys.join(WRAPPING_KEY_FILE)), 0o600);
    assert_eq!(names(&keys), [KEY_FILE, WRAPPING_KEY_FILE], "something was left beside the key");
    assert_eq!(DataKey::wrap(&keys).unwrap(), Some(KeyWrap::KeyStore));
    let text = fs::read_to_string(keys.join(KEY_FILE)).unwrap();
    assert!(!text.contains(&hex(made.bytes.as_slice())), "the key lies bare");
}

#[test]
fn many_threads_get_one_key_also_over_the_remains_of_a_killed_one() {
    let (_place, keys, database) = place();
    create_private_directory(&keys).unwrap();
    fs::write(keys.join(".data.key.00000000000000000000000000000000"), "half a ke").unwrap();
    let checks: Vec<String> = std::thread::scope(|scope| {
        let load = || DataKey::load_or_create(&keys, &database).unwrap().check();
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(checks.iter().all(|check| *check == checks[0]), "{checks:?}");
    assert_eq!(names(&keys), [KEY_FILE, WRAPPING_KEY_FILE]);
}

#[test]
fn no_key_is_made_over_an_existing_database() {
    let (_place, keys, database) = place();
    fs::write(&database, "something").unwrap();
    let error = DataKey::load_or_create(&keys, &database).unwrap_err();
    assert!(matches!(error, StoreError::KeyMissing { .. }), "{error}");
    assert_eq!(error.exit_code(), 4);
    assert!(!keys.exists());
}

#[test]
fn a_key_that_others_can_read_a_link_or_a_damaged_one_is_refused() {
    let (_place, keys, database) = place();
    let bare = write_bare(&keys);
    for file in [KEY_FILE, WRAPPING_KEY_FILE] {
        let path = keys.join(file);
        DataKey::load_or_create(&keys, &database).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let load = || DataKey::load(&keys, &database).unwrap_err();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(), StoreError::KeyExposed { mode: 0o640, .. }));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

        let key_at = text.find("key = \"").unwrap() + 7;
        let flipped = if &text[key_at..=key_at] == "0" { "1" } else { "0" };
        for bad in [
            String::new(),
            "\u{0}".repeat(99),
            text.replace("version = ", "version = 0"),
            format!("{}{flipped}{}", &text[..key_at], &text[key_at + 1..]),
            format!("{}\"\"\"", text.trim_end()),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = load();
            assert!(matches!(error, StoreError::KeyDamaged { .. }), "{file}: {error}");
            let said = format!("{error} {error:?}");
            assert!(!said.contains(&text[key_at..key_at + 8]), "the key is in the error");
        }

        fs::rename(&path, keys.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(keys.join("elsewhere"), &path).unwrap();
        assert!(matches!(load(), StoreError::File { .. }));
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(*DataKey::load(&keys, &database).unwrap().bytes, *bare);
}

#[test]
fn debug_does_not_show_the_key() {
    let (_place, keys, database) = place();
    let key = DataKey::load_or_create(&keys, &database).unwrap();
    let shown = format!("{key:?}");
    assert!(
        !shown.contains(&hex(&key.bytes[..4])) && !shown.contains(&format!("{:?}", &key.bytes[..4])),
        "{shown}"
    );
}

/// A key file as the first version of the program wrote it.
fn write_bare(keys: &Path) -> Zeroizing<[u8; KEY_BYTES]> {
    let bytes = Zeroizing::new([0xab; KEY_BYTES]);
    let key = DataKey { bytes: bytes.clone(), origin: keys.join(KEY_FILE), sealed: Zeroizing::default() };
    create_private_directory(keys).unwrap();
    let text = format!(
        "version = 1\nwrap = \"none\"\nkey = \"{}\"\ncheck = \"{}\"\n",
        hex(bytes.as_slice()),
        key.check()
    );
    fs::write(key.origin(), text).unwrap();
    fs::set_permissions(key.origin(), fs::Permissions::from_mode(0o600)).unwrap();
    bytes
}

#[test]
fn a_bare_key_of_an_earlier_version_is_read_and_sealed_by_the_next_writer() {
    let (_place, keys, database) = place();
    let bytes = write_bare(&keys);
    assert_eq!(*DataKey::load(&keys, &database).unwrap().bytes, *bytes);
    assert_eq!(DataKey::wrap(&keys).unwrap(), Some(KeyWrap::Bare), "a reader changed it");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(*DataKey::load_or_create(&keys, &database).unwrap().bytes, *bytes));
        }
    });
    assert_eq!(DataKey::wrap(&keys).unwrap(), Some(KeyWrap::KeyStore));
    assert_eq!(*DataKey::load(&keys, &database).unwrap().bytes, *bytes);
    assert_eq!(names(&keys), [KEY_FILE, WRAPPING_KEY_FILE]);
}

#[test]
fn after_a_change_the_old_passphrase_fails_the_new_one_opens_and_the_key_is_the_same() {
    let (_place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the first one"), CHEAP)).unwrap();
    assert_eq!(names(&keys), [KEY_FILE], "the wrapping key is still there");
    assert!(matches!(DataKey::load(&keys, &database), Err(StoreError::PassphraseNeeded { .. })));
    let before = fs::read(keys.join(KEY_FILE)).unwrap();
    let error = open_with(&keys, &database, "another one").unwrap_err();
    assert!(matches!(error, StoreError::WrongPassphrase { .. }) && error.exit_code() == 4, "{error}");
    assert_eq!(fs::read(keys.join(KEY_FILE)).unwrap(), before);
    assert_eq!(*open_with(&keys, &database, "the first one").unwrap().bytes, *key.bytes);

    key.reseal(&NewWrap::Passphrase(&passphrase("the second one"), CHEAP)).unwrap();
    assert!(matches!(open_with(&keys, &database, "the first one"), Err(StoreError::WrongPassphrase { .. })));
    assert_eq!(*open_with(&keys, &database, "the second one").unwrap().bytes, *key.bytes);

    key.reseal(&NewWrap::KeyStore).unwrap();
    assert_eq!(*DataKey::load(&keys, &database).unwrap().bytes, *key.bytes);
    assert_eq!(names(&keys), [KEY_FILE, WRAPPING_KEY_FILE]);
}

#[test]
fn what_a_killed_removal_of_the_passphrase_has_left_is_gone_with_the_next_opening() {
    let (_place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    let [sealed, wrapping] = [KEY_FILE, WRAPPING_KEY_FILE].map(|name| fs::read(keys.join(name)).unwrap());
    key.reseal(&NewWrap::Passphrase(&passphrase("the first one"), CHEAP)).unwrap();
    // Killed before the rename: both together open the database without the passphrase.
    private_file::replace(&keys.join(WRAPPING_KEY_FILE), &wrapping).unwrap();
    let left = keys.join(format!(".{KEY_FILE}.{}", uuid::Uuid::new_v4().simple()));
    private_file::replace(&left, &sealed).unwrap();
    assert!(open_with(&keys, &database, "a wrong one").is_err());
    assert!(left.exists(), "who does not have the passphrase changes nothing");
    open_with(&keys, &database, "the first one").unwrap();
    assert_eq!(names(&keys), [KEY_FILE]);
}

#[test]
fn of_two_changes_at_once_one_is_made_and_the_other_refused() {
    let (_place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the old one"), CHEAP)).unwrap();
    // Both were let in by the old passphrase before either changed it.
    let mut opened = [(); 2].map(|()| open_with(&keys, &database, "the old one").unwrap());
    let texts = ["new one of A", "new one of B"];
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let change = |(key, text): (_, &'static str)| {
            let key: &mut DataKey = key;
            scope.spawn(move || key.reseal(&NewWrap::Passphrase(&passphrase(text), CHEAP)))
        };
        let threads: Vec<_> = opened.iter_mut().zip(texts).map(change).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (outcome, text) in outcomes.iter().zip(texts) {
        let opens = open_with(&keys, &database, text).is_ok();
        assert_eq!(outcome.is_ok(), opens, "`{text}`: {outcome:?}");
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let refused = outcomes.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(refused, StoreError::KeyChanged { .. }) && refused.exit_code() == 5, "{refused}");
}

#[test]
fn who_was_let_in_by_a_passphrase_replaced_since_changes_nothing_not_even_by_removing_it() {
    let (_place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the old one"), CHEAP)).unwrap();
    let mut late = open_with(&keys, &database, "the old one").unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the new one"), CHEAP)).unwrap();
    let before = fs::read(keys.join(KEY_FILE)).unwrap();
    let theirs = passphrase("one of theirs");
    for wrap in [NewWrap::Passphrase(&theirs, CHEAP), NewWrap::KeyStore] {
        let error = late.reseal(&wrap).unwrap_err();
        assert!(matches!(error, StoreError::KeyChanged { .. }), "{error}");
    }
    assert_eq!(fs::read(keys.join(KEY_FILE)).unwrap(), before);
    assert_eq!(names(&keys), [KEY_FILE]);
    // Opened anew, with the one that counts, it may.
    open_with(&keys, &database, "the new one").unwrap().reseal(&NewWrap::KeyStore).unwrap();
}

#[test]
fn a_wrapping_key_that_is_missing_or_another_is_told_from_a_damaged_one() {
    let ((_place, keys, database), (_elsewhere, other_keys, other)) = (place(), place());
    DataKey::load_or_create(&keys, &database).unwrap();
    DataKey::load_or_create(&other_keys, &other).unwrap();
    fs::copy(other_keys.join(WRAPPING_KEY_FILE), keys.join(WRAPPING_KEY_FILE)).unwrap();
    let error = DataKey::load(&keys, &database).unwrap_err();
    assert!(matches!(error, StoreError::WrongWrappingKey { .. }) && error.exit_code() == 4, "{error}");
    fs::remove_file(keys.join(WRAPPING_KEY_FILE)).unwrap();
    let error = DataKey::load_or_create(&keys, &database).unwrap_err();
    assert!(matches!(error, StoreError::WrappingKeyMissing { .. }) && error.exit_code() == 4, "{error}");
}

#[test]
fn who_reads_while_it_is_sealed_anew_again_and_again_always_gets_the_key() {
    let (_place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    let bytes = key.bytes.clone();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(*open_with(&keys, &database, "some passphrase").unwrap().bytes, *bytes);
                reads += 1;
            }
            reads
        });
        for _ in 0..30 {
            key.reseal(&NewWrap::Passphrase(&passphrase("some passphrase"), CHEAP)).unwrap();
            key.reseal(&NewWrap::KeyStore).unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_vault_asks_once_and_not_again_after_the_passphrase_was_changed_but_never_hides_another_key() {
    let (place, keys, database) = place();
    let mut key = DataKey::load_or_create(&keys, &database).unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the first one"), CHEAP)).unwrap();
    let file = place.path().join("passphrase");
    fs::write(&file, "the first one\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let sources = PassphraseSources { flag: Some(file.clone()), ..PassphraseSources::default() };
    let vault = Vault::new(keys.clone(), database.clone(), sources);
    assert_eq!(*vault.open().unwrap().bytes, *key.bytes);
    fs::remove_file(&file).unwrap();
    key.reseal(&NewWrap::Passphrase(&passphrase("the second one"), CHEAP)).unwrap();
    assert_eq!(*vault.open_or_create().unwrap().bytes, *key.bytes);
    // The file is gone, or is about another key: what is held is not given out for it.
    let text = fs::read(keys.join(KEY_FILE)).unwrap();
    fs::remove_file(keys.join(KEY_FILE)).unwrap();
    assert!(matches!(vault.open(), Err(StoreError::NotInitialised { .. })));
    let (bytes, sealed) = (Zeroizing::new([1; KEY_BYTES]), Zeroizing::default());
    let mut other = DataKey { bytes, origin: keys.join(KEY_FILE), sealed };
    wrap::seal(&mut other, &NewWrap::KeyStore).unwrap();
    let unused = vault.open().unwrap_err();
    assert!(matches!(unused, StoreError::PassphraseUnused { .. }) && unused.exit_code() == 2, "{unused}");
    fs::remove_file(keys.join(KEY_FILE)).unwrap();
    fs::write(&file, "the first one\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    wrap::seal(&mut other, &NewWrap::Passphrase(&passphrase("the first one"), CHEAP)).unwrap();
    assert_eq!(*vault.open().unwrap().bytes, *other.bytes);
    assert!(matches!(key.reseal(&NewWrap::KeyStore), Err(StoreError::KeyChanged { .. })));
    fs::write(keys.join(KEY_FILE), text).unwrap();
}

#[test]
fn a_new_key_is_sealed_under_the_passphrase_that_is_given() {
    let (place, keys, database) = place();
    let file = place.path().join("passphrase");
    let vault = || {
        let sources = PassphraseSources { variable: Some(file.clone()), ..PassphraseSources::default() };
        Vault::new(keys.clone(), database.clone(), sources)
    };
    let missing = vault().open_or_create().unwrap_err();
    assert!(matches!(missing, StoreError::Passphrase(_)), "{missing}");
    fs::write(&file, "short\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(vault().open_or_create().is_err(), "too short for a new one");
    assert!(!keys.join(KEY_FILE).exists(), "a key was made all the same");
    fs::write(&file, "long enough for one\n").unwrap();
    let made = vault().open_or_create().unwrap();
    assert!(matches!(DataKey::wrap(&keys), Ok(Some(KeyWrap::Passphrase { .. }))));
    assert_eq!(*vault().open().unwrap().bytes, *made.bytes);
    assert!(matches!(DataKey::load(&keys, &database), Err(StoreError::PassphraseNeeded { .. })));
}
