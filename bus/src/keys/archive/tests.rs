use std::{fs, time::Duration};

use super::*;
use crate::{endpoint::Endpoint, keys::Permissions};

const CHEAP: PassphraseCost = PassphraseCost { passes: 1, memory_kib: 8 };
const PASSPHRASE: &[u8] = b"correct horse battery";

fn store(directory: &Path) -> KeyStore {
    KeyStore::open_or_create(&directory.join("keys")).unwrap().0
}

fn issue(store: &KeyStore, name: &str, topic: &str) -> Credentials {
    let rights = Permissions::from_lists(&[topic], &[], &[], &[]).unwrap();
    let endpoints: Vec<Endpoint> = vec!["tcp://127.0.0.1:5555".parse().unwrap()];
    store.issue(&name.parse().unwrap(), &rights, &endpoints, None).unwrap()
}

fn import(directory: &Path, from: &Path, replace: bool) -> Result<Imported, KeyError> {
    KeyStore::import(&directory.join("keys"), from, PASSPHRASE, replace)
}

#[test]
fn everything_arrives_in_a_fresh_directory_and_single_peers_in_another_installation() {
    let place = tempfile::tempdir().unwrap();
    let (here, fresh, other) =
        (place.path().join("here"), place.path().join("fresh"), place.path().join("other"));
    let source = store(&here);
    let (ada, bob) = (issue(&source, "ada", "a"), issue(&source, "bob", "b"));
    source.rotate(&ada.name, Duration::from_secs(3600), None, &[], None).unwrap();
    source.revoke(&bob.name).unwrap();
    fs::remove_file(bob.file.unwrap()).unwrap();
    let all = place.path().join("all");
    let exported = source.export(None, PASSPHRASE, CHEAP, &all).unwrap();
    assert_eq!((exported.peers, exported.without_secret), (vec![ada.name.clone()], vec![bob.name.clone()]));
    let text = fs::read_to_string(&all).unwrap();
    let secret = Credentials::load(&Credentials::path_in(source.directory(), &ada.name)).unwrap();
    assert!(!text.contains("bob") && !text.contains(secret.keys.secret.expose_z85().as_str()));

    let done = import(&fresh, &all, false).unwrap();
    assert!(done.broker && done.added == [ada.name.clone(), bob.name.clone()] && done.replaced.is_empty());
    let copy = KeyStore::open(&fresh.join("keys")).unwrap();
    let peers = |store: &KeyStore| {
        store.registry().unwrap().peers().map(|(name, peer)| (name.clone(), peer.clone())).collect::<Vec<_>>()
    };
    assert_eq!(peers(&copy), peers(&source));
    assert_eq!(copy.broker_keys().unwrap().pairs(), source.broker_keys().unwrap().pairs());
    let file = Credentials::path_in(copy.directory(), &ada.name);
    assert_eq!(Credentials::load(&file).unwrap().keys, secret.keys);
    // The same again changes nothing.
    let again = import(&fresh, &all, false).unwrap();
    assert_eq!((again.same.len(), again.broker), (2, false));

    let single = place.path().join("single");
    source.export(Some(std::slice::from_ref(&ada.name)), PASSPHRASE, CHEAP, &single).unwrap();
    let elsewhere = store(&other);
    import(&other, &single, false).unwrap();
    let held = Credentials::load(&Credentials::path_in(elsewhere.directory(), &ada.name)).unwrap();
    assert_eq!((held.keys, held.broker), (secret.keys, elsewhere.broker_keys().unwrap().current.public));
    assert!(matches!(
        source.export(Some(&[bob.name]), PASSPHRASE, CHEAP, &place.path().join("none")),
        Err(KeyError::CredentialsMissing { .. })
    ));
    assert!(matches!(source.export(None, PASSPHRASE, CHEAP, &all), Err(KeyError::Exists { .. })));
}

#[test]
fn another_key_is_replaced_on_demand_only_and_then_everything_or_nothing_is() {
    let place = tempfile::tempdir().unwrap();
    let (here, there) = (place.path().join("here"), place.path().join("there"));
    let (source, target) = (store(&here), store(&there));
    let given = issue(&source, "ada", "a");
    issue(&source, "new", "n");
    let own = issue(&target, "ada", "mine");
    let all = place.path().join("all");
    source.export(None, PASSPHRASE, CHEAP, &all).unwrap();
    let contents = || {
        let names = ["broker.toml", "authorized.toml", "ada.toml"];
        names.map(|name| fs::read(target.directory().join(name)).unwrap())
    };
    let before = contents();
    let error = import(&there, &all, false).unwrap_err();
    assert!(matches!(error, KeyError::OtherKeys { .. }), "{error}");
    let text = error.to_string();
    assert!(["the broker", "`ada`", "--replace"].iter().all(|part| text.contains(part)), "{text}");
    assert!(contents() == before && !target.directory().join("new.toml").exists());
    let done = import(&there, &all, true).unwrap();
    assert_eq!((done.replaced, done.added.len(), done.broker), (vec![own.name.clone()], 1, true));
    let registry = target.registry().unwrap();
    assert_eq!(registry.peer(&own.name).unwrap().key, given.keys.public);
    assert_eq!(
        Credentials::load(&own.file.unwrap()).unwrap().broker,
        source.broker_keys().unwrap().current.public
    );
    // The same key with other rights here keeps them, unless it is to be replaced.
    let mine = Permissions::from_lists(&["mine"], &[], &[], &[]).unwrap();
    target.set_permissions(&own.name, &mine).unwrap();
    import(&there, &all, false).unwrap();
    assert_eq!(*target.registry().unwrap().peer(&own.name).unwrap().permissions, mine);
    assert_eq!(import(&there, &all, true).unwrap().replaced, [own.name]);
}

#[test]
fn a_wrong_passphrase_damage_anywhere_and_a_later_version_are_told_apart_and_change_nothing() {
    let place = tempfile::tempdir().unwrap();
    let source = store(&place.path().join("here"));
    issue(&source, "ada", "a");
    let file = place.path().join("all");
    source.export(None, PASSPHRASE, CHEAP, &file).unwrap();
    let wrong = KeyStore::import(&place.path().join("no/keys"), &file, b"something else", false);
    assert!(matches!(wrong, Err(KeyError::WrongPassphrase { .. })), "{wrong:?}");
    let text = fs::read_to_string(&file).unwrap();
    let with = |text: &str| {
        private_file::replace(&file, text.as_bytes()).unwrap();
        import(&place.path().join("no"), &file, true).unwrap_err()
    };
    let later = text.replacen("\"interlock_keys\":1", "\"interlock_keys\":2", 1);
    assert!(matches!(with(&later), KeyError::Version { version: 2, .. }));
    for at in (0..text.len()).filter(|at| !later.is_char_boundary(*at + 1) || *at % 23 == 0 || *at < 250) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        let error = with(std::str::from_utf8(&bytes).unwrap());
        assert!(matches!(error, KeyError::Damaged { .. } | KeyError::Version { .. }), "byte {at}: {error}");
        if at % 50 == 0 {
            let error = with(&text[..at]);
            assert!(matches!(error, KeyError::Damaged { .. }), "cut at {at}: {error}");
        }
    }
    assert!(matches!(with(&format!("{text}0")), KeyError::Damaged { .. }));
    // Somebody who fits the digest to a cost out of bounds occupies no machine.
    let (first, rest) = text.split_once('\n').unwrap();
    let first = first.replace("\"memory_kib\":8", "\"memory_kib\":4000000000");
    let check = rest.split(' ').next().unwrap();
    let digest = hex(&short_digest::<DIGEST_BYTES>(format!("{first}\n{check}").as_bytes()));
    let costly = format!("{first}\n{check} {digest}\n{}", rest.split_once('\n').unwrap().1);
    let error = with(&costly);
    assert!(
        matches!(&error, KeyError::Damaged { problem, .. } if problem.contains("out of bounds")),
        "{error}"
    );
    assert!(!place.path().join("no").exists(), "nothing was begun");
}

#[test]
fn an_import_that_was_killed_is_finished_or_undone_by_whoever_comes_next() {
    let place = tempfile::tempdir().unwrap();
    let source = store(&place.path().join("here"));
    let ada = issue(&source, "ada", "a");
    let target = store(&place.path().join("there"));
    let staged = target.directory().join(".staged");
    for whole in [false, true] {
        private_file::private_directory(&staged).unwrap();
        for name in ["ada.toml", "authorized.toml"] {
            fs::copy(source.directory().join(name), staged.join(name)).unwrap();
        }
        if whole {
            private_file::replace(&staged.join("whole"), b"").unwrap();
        }
        KeyStore::open_or_create(target.directory()).unwrap();
        assert_eq!(target.registry().unwrap().peer(&ada.name).is_some(), whole);
        assert!(!staged.exists());
    }
}
