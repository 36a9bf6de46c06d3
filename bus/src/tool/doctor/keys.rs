//! Credentials, the broker's key, and the registry: who is in it, until when, and with which rights.

use std::path::Path;

use super::{Finding, Patient, some_of};
use crate::{
    envelope::now_ns,
    exit::Exit,
    keys::{
        Credentials, KeyState, KeyStore, LastUse, Registry, Right,
        registry::Peer,
        time_text,
        token_file::{self, TokenRecord},
    },
    peer::PeerName,
    topic::TopicFilter,
};

/// How long before its end a key is told of: time enough to give out another one.
const EXPIRES_SOON_MS: u64 = 7 * DAY_MS;
/// How long a key may be without a session before it counts as one that nobody needs.
const UNUSED_MS: u64 = 90 * DAY_MS;
const DAY_MS: u64 = 24 * 3_600_000;

/// The peer whose rights are meant to be everything.
const OPERATOR: &str = "operator";

pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    let now_ms = now_ns() / 1_000_000;
    let mut findings = Vec::new();
    let credentials = match &patient.credentials {
        Ok(credentials) => {
            findings.push(usable(credentials));
            Some(credentials)
        }
        Err(failure) => {
            let remedy =
                if failure.exit() == Exit::NotReady { "interlock run" } else { "interlock keys list" };
            let found = failure.to_string();
            findings.push(Finding::fail("keys.credentials", failure.exit(), found).remedy(remedy));
            None
        }
    };
    // Another machine has its own.
    let Some(directory) = patient.data.as_ref().map(|data| data.join("keys")).filter(|keys| keys.exists())
    else {
        return findings;
    };
    let store = match KeyStore::open(&directory) {
        Ok(store) => store,
        Err(error) => {
            findings.push(Finding::fail("keys.broker", Exit::of_key(&error), error.to_string()));
            return findings;
        }
    };
    findings.extend(credentials.map(|credentials| broker_key(&store, credentials, now_ms)));
    match store.registry() {
        Ok(registry) => {
            findings.extend(credentials.map(|credentials| registered(&registry, credentials, now_ms)));
            findings.push(Finding::ok("registry.file", format!("{} peers", registry.peers().count())));
            findings.extend(ends(&registry, now_ms));
            findings.push(wide(&registry));
            findings.push(unused(&registry, &store, now_ms));
        }
        Err(error) => findings.push(damaged_registry(&store.registry_path(), &error)),
    }
    findings.push(tokens(&store, now_ms));
    findings
}

/// Whether the gateway can read who may come in.
fn tokens(store: &KeyStore, now_ms: u64) -> Finding {
    const CHECK: &str = "tokens.file";
    match store.tokens() {
        Ok(tokens) => {
            let registry = store.registry().ok();
            let is_over =
                |token: &TokenRecord| registry.as_ref().is_some_and(|known| token.is_over_in(known));
            let active =
                tokens.iter().filter(|token| token.state(now_ms) == "active" && !is_over(token)).count();
            Finding::ok(CHECK, format!("{active} tokens of the gateway can be used"))
        }
        Err(error) => {
            let path = store.directory().join(token_file::FILE);
            let found =
                format!("{error}; a gateway that runs keeps the tokens of before, one that starts has none");
            Finding::fail(CHECK, Exit::of_key(&error), found)
                .remedy(format!("\"${{EDITOR:-vi}}\" {}", super::quoted(&path)))
        }
    }
}

fn damaged_registry(path: &Path, error: &crate::keys::KeyError) -> Finding {
    let found = format!("{error}; a broker that runs keeps the rules of before, and none starts with these");
    Finding::fail("registry.file", Exit::of_key(error), found)
        .remedy(format!("\"${{EDITOR:-vi}}\" {}", super::quoted(path)))
}

fn usable(credentials: &Credentials) -> Finding {
    let file = credentials.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let (name, fingerprint) = (&credentials.name, credentials.keys.public.fingerprint());
    Finding::ok("keys.credentials", format!("`{name}`, key {fingerprint}, from `{file}`"))
}

/// Whether the credentials name the broker that has this key store.
fn broker_key(store: &KeyStore, credentials: &Credentials, now_ms: u64) -> Finding {
    const CHECK: &str = "keys.broker";
    let keys = match store.broker_keys() {
        Ok(keys) => keys,
        Err(error) => return Finding::fail(CHECK, Exit::of_key(&error), error.to_string()),
    };
    let renew = || {
        let file = credentials.file.as_deref().map(super::quoted);
        format!("interlock keys renew {}", file.unwrap_or_else(|| "FILE".to_owned()))
    };
    let (named, held) = (credentials.broker.fingerprint(), keys.current.public.fingerprint());
    if credentials.broker == keys.current.public {
        return Finding::ok(CHECK, format!("the credentials name the broker's key, {held}"));
    }
    if keys.accept(&credentials.broker, now_ms) {
        let until = time_text(keys.until_ms(&credentials.broker).unwrap_or_default());
        let found =
            format!("the credentials name the broker's old key {named}, which is accepted until {until}");
        return Finding::warn(CHECK, found).remedy(renew());
    }
    let found = format!("the credentials name the broker key {named}, and the broker has {held}");
    Finding::fail(CHECK, Exit::Denied, found).remedy(renew())
}

/// Whether the broker will take the key.
fn registered(registry: &Registry, credentials: &Credentials, now_ms: u64) -> Finding {
    match registry.authenticate(&credentials.keys.public, now_ms) {
        Ok((name, _)) if name == credentials.name => {
            Finding::ok("keys.registered", format!("the key is the one of `{name}` in the registry"))
        }
        Ok((name, _)) => {
            let found = format!(
                "the credentials are those of `{}`, and their key is enrolled as `{name}`",
                credentials.name
            );
            Finding::warn("keys.registered", found).remedy(format!("interlock keys show {name}"))
        }
        Err(refusal) => Finding::fail("keys.registered", Exit::Denied, refusal.to_string())
            .remedy(format!("interlock keys show {}", credentials.name)),
    }
}

fn active(registry: &Registry) -> impl Iterator<Item = (&PeerName, &Peer)> {
    registry.peers().filter(|(_, peer)| peer.state == KeyState::Active)
}

/// Keys that end soon, or have ended.
fn ends(registry: &Registry, now_ms: u64) -> Vec<Finding> {
    const CHECK: &str = "registry.expiry";
    let soon = active(registry).filter_map(|(name, peer)| {
        let at_ms = peer.expires_ms.filter(|at_ms| *at_ms <= now_ms + EXPIRES_SOON_MS)?;
        let how = if at_ms <= now_ms { "expired at" } else { "ends at" };
        let found = format!("the key of `{name}` {how} {}", time_text(at_ms));
        Some(Finding::warn(CHECK, found).remedy(format!("interlock keys rotate {name} --expires 30d")))
    });
    let mut findings: Vec<Finding> = soon.collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("no key ends within {} days", EXPIRES_SOON_MS / DAY_MS)));
    }
    findings
}

/// Peers that may do something on every topic.
fn wide(registry: &Registry) -> Finding {
    const CHECK: &str = "registry.rights";
    let is_everything = |filter: &TopicFilter| matches!(filter.as_str(), "#" | "$sys/#" | "+/#");
    let rights = [Right::Publish, Right::Subscribe, Right::Serve, Right::Request];
    let wide = active(registry).filter(|(name, _)| name.as_str() != OPERATOR).filter_map(|(name, peer)| {
        let everything = |right: &Right| {
            let rules = peer.permissions.rules(*right);
            // Of what it subscribes to on the bus itself it learns only what happened.
            let is_wide = |filter: &&TopicFilter| {
                // What it publishes there is refused.
                is_everything(filter)
                    && !(filter.as_str() == "$sys/#" && matches!(right, Right::Subscribe | Right::Publish))
            };
            rules.deny.is_empty() && rules.allow.iter().any(|filter| is_wide(&filter))
        };
        let may: Vec<&str> =
            rights.iter().filter(|right| everything(right)).map(|right| right.as_str()).collect();
        (!may.is_empty()).then(|| (name.to_string(), may.join(", ")))
    });
    let wide: Vec<(String, String)> = wide.collect();
    match wide.first() {
        None => Finding::ok(CHECK, format!("nobody but `{OPERATOR}` may use every topic")),
        Some((first, _)) => {
            let each: Vec<String> = wide.iter().map(|(name, may)| format!("{name}: {may}")).collect();
            let found = format!("rights on every topic, with no exception: {}", some_of(&each));
            Finding::warn(CHECK, found).remedy(format!("interlock keys show {first}"))
        }
    }
}

/// Keys that nobody seems to need.
fn unused(registry: &Registry, store: &KeyStore, now_ms: u64) -> Finding {
    const CHECK: &str = "registry.unused";
    let last_use = match store.last_use() {
        Ok(last_use) => last_use,
        Err(error) => return Finding::warn(CHECK, format!("not known: {error}")),
    };
    let days = UNUSED_MS / DAY_MS;
    let unused: Vec<String> = active(registry)
        .filter(|(name, peer)| is_unused(&last_use, name, peer, now_ms))
        .map(|(name, _)| name.to_string())
        .collect();
    match unused.first() {
        None => Finding::ok(CHECK, format!("each key had a session within {days} days, or is younger")),
        Some(first) => Finding::warn(CHECK, format!("no session within {days} days: {}", some_of(&unused)))
            .remedy(format!("interlock keys revoke {first}")),
    }
}

/// When nobody knows since when a key is there, only a session long ago speaks against it.
fn is_unused(last_use: &LastUse, name: &PeerName, peer: &Peer, now_ms: u64) -> bool {
    let last_ms = last_use.of_peer(name).or(peer.issued_ms);
    last_ms.is_some_and(|last_ms| last_ms.saturating_add(UNUSED_MS) < now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::KeyPair, keys::Permissions};

    fn registry(peers: &[(&str, Permissions, Option<u64>)]) -> Registry {
        let mut registry = Registry::default();
        for (name, permissions, expires_ms) in peers {
            let peer = Peer::new(KeyPair::generate().public, permissions.clone());
            registry
                .insert(name.parse().unwrap(), Peer { expires_ms: *expires_ms, issued_ms: Some(1), ..peer })
                .unwrap();
        }
        registry
    }

    #[test]
    fn keys_that_end_soon_rights_on_everything_and_keys_nobody_uses_are_told() {
        let narrow = || Permissions::from_lists(&["a/#"], &["$sys/#"], &[], &[]).unwrap();
        let everything = || Permissions::from_lists(&["#"], &["#"], &[], &["$sys/#"]).unwrap();
        let now_ms = 1000 * DAY_MS;
        let all = registry(&[
            ("late", narrow(), Some(now_ms + DAY_MS)),
            ("operator", everything(), None),
            ("wide", everything(), None),
        ]);
        let found = ends(&all, now_ms);
        assert_eq!((found.len(), found[0].level), (1, super::super::Level::Warn));
        assert!(
            found[0].found.contains("`late` ends at")
                && found[0].remedy.as_deref() == Some("interlock keys rotate late --expires 30d")
        );
        assert_eq!(ends(&all, now_ms - 30 * DAY_MS)[0].level, super::super::Level::Ok);
        let found = wide(&all);
        assert!(
            found.found.contains("`wide: publish, subscribe, request`") && !found.found.contains("operator"),
            "{found:?}"
        );
        let mut used = LastUse::default();
        used.note(&"late".parse().unwrap(), None, now_ms - DAY_MS);
        let is_unused = |name: &str| {
            is_unused(&used, &name.parse().unwrap(), all.peer(&name.parse().unwrap()).unwrap(), now_ms)
        };
        assert_eq!((is_unused("late"), is_unused("wide")), (false, true));
    }
}
