//! Keys: who may connect, and do what.

use std::time::Duration;

use interlock_actors::gateway::{
    steward::{MadeKey, NewPeer, Refusal, RefusalKind},
    tokens::TokenError,
};
use interlock_bus::{
    Endpoint, KeyStore, PeerName,
    envelope::now_ns,
    keys::{Keep, KeyError, Registry},
};
use serde_json::{Value, json};

use super::refused;
use crate::{
    config::schema::nearest,
    keys::{self, KeyOrderError},
    site::Site,
};

pub(super) fn list(store: &KeyStore) -> Result<Vec<Value>, Refusal> {
    let registry = store.registry().map_err(of_key)?;
    // Without it everything else can be shown.
    let last_use = store.last_use().unwrap_or_default();
    let now_ms = now_ms();
    Ok(registry.peers().map(|(name, peer)| keys::facts(name, peer, &last_use, now_ms)).collect())
}

pub(super) fn show(store: &KeyStore, name: &PeerName) -> Result<Value, Refusal> {
    let registry = store.registry().map_err(of_key)?;
    let peer = registry.peer(name).ok_or_else(|| unknown(&registry, name))?;
    let last_use = store.last_use().unwrap_or_default();
    Ok(keys::facts_with_rules(store, &registry, name, peer, &last_use, now_ms()))
}

pub(super) fn issue(site: &Site, by: &PeerName, wanted: &NewPeer) -> Result<MadeKey, Refusal> {
    let NewPeer { name, permissions, expires_in } = wanted;
    if keys::is_built_in(name) {
        let text = format!("`{name}` is the name of a built-in component; choose another");
        return Err(refused(RefusalKind::Misuse, "bad_request", text));
    }
    let store = site.keys.asked_by(by);
    let permissions =
        keys::rights_of_new(&store, name, permissions, expires_in.is_some()).map_err(of_order)?;
    let expires_ms = expires_in.map(end_ms);
    let is_ours = is_ours(site, name);
    let keep = if is_ours { Keep::InStore } else { Keep::Nowhere };
    let made = store.issue_until(name, &permissions, expires_ms, &endpoints(site), keep).map_err(of_key)?;
    let key = made.keys.public;
    tracing::info!(%by, peer = %name, fingerprint = key.fingerprint(), "peer enrolled");
    Ok(MadeKey {
        facts: json!({
            "name": name, "public_key": key, "fingerprint": key.fingerprint(), "expires_ms": expires_ms,
        }),
        credentials: (!is_ours).then(|| made.to_toml()),
    })
}

pub(super) fn revoke(site: &Site, by: &PeerName, name: &PeerName) -> Result<(), Refusal> {
    let registry = site.keys.registry().map_err(of_key)?;
    if registry.peer(name).is_none() {
        return Err(unknown(&registry, name));
    }
    if keys::is_built_in(name) {
        let text = format!(
            "`{name}` is a built-in component, and without its key the runtime does not do its work; \
             `POST /v1/admin/keys/{name}/rotate` gives it another, and `interlock keys revoke {name}` shuts it out all the same"
        );
        return Err(refused(RefusalKind::Conflict, crate::admin::NOT_BY_ITSELF, text));
    }
    if let Some(error) = keys::revoke(&site.keys.asked_by(by), name).map_err(of_order)? {
        tracing::warn!(%error, "a token was revoked in the registry alone");
    }
    tracing::info!(%by, peer = %name, "key revoked");
    Ok(())
}

pub(super) fn rotate(
    site: &Site,
    by: &PeerName,
    name: &PeerName,
    overlap: Duration,
    expires_in: Option<Duration>,
) -> Result<MadeKey, Refusal> {
    let registry = site.keys.registry().map_err(of_key)?;
    if registry.peer(name).is_none() {
        return Err(unknown(&registry, name));
    }
    keys::check_rotation(name, expires_in.is_some()).map_err(of_order)?;
    let is_ours = is_ours(site, name);
    let keep = if is_ours { Keep::InStore } else { Keep::Nowhere };
    let store = site.keys.asked_by(by);
    let rotation = store.rotate(name, overlap, expires_in.map(end_ms), &endpoints(site), keep);
    let rotation = rotation.map_err(of_key)?;
    let key = rotation.credentials.keys.public;
    tracing::info!(%by, peer = %name, fingerprint = key.fingerprint(), "key replaced");
    Ok(MadeKey {
        facts: json!({
            "name": name, "public_key": key, "fingerprint": key.fingerprint(), "before": rotation.before,
            "before_until_ms": rotation.before_until_ms, "expires_ms": rotation.expires_ms,
        }),
        credentials: (!is_ours).then(|| rotation.credentials.to_toml()),
    })
}

/// Whether the runtime itself uses the credentials of this peer, and finds them in the key store. Nobody else needs them.
fn is_ours(site: &Site, name: &PeerName) -> bool {
    let loaded = site.live.loaded();
    keys::is_built_in(name)
        || loaded.config.programs.iter().any(|program| program.name == *name)
        || loaded.sources.actors.iter().any(|actor| actor == name.as_str())
}

/// Where the broker listens.
fn endpoints(site: &Site) -> Vec<Endpoint> {
    site.listened.get().unwrap_or_else(|| site.endpoints.clone())
}

fn unknown(registry: &Registry, name: &PeerName) -> Refusal {
    let names = registry.peers().map(|(name, _)| name.as_str());
    let meant = nearest(name.as_str(), names).map(|meant| format!("; did you mean `{meant}`?"));
    let meant = meant.unwrap_or_else(|| "; `GET /v1/admin/keys` shows those there are".to_owned());
    refused(RefusalKind::Unknown, "unknown_peer", format!("there is no peer `{name}`{meant}"))
}

fn of_order(error: KeyOrderError) -> Refusal {
    let text = error.to_string();
    match error {
        KeyOrderError::EndOfBuiltIn(name) => {
            let text = format!(
                "`{name}` is a built-in component, and its key must not end by itself; leave out `expires_in_s`"
            );
            refused(RefusalKind::Misuse, "bad_request", text)
        }
        KeyOrderError::BuiltIn(_) | KeyOrderError::OfToken { .. } => {
            refused(RefusalKind::Misuse, "bad_request", text)
        }
        KeyOrderError::Keys(error) | KeyOrderError::Token(TokenError::Keys(error)) => of_key(error),
        KeyOrderError::Token(_) => refused(RefusalKind::Conflict, "token", text),
    }
}

fn of_key(error: KeyError) -> Refusal {
    let conflict = |code: &str, text: String| refused(RefusalKind::Conflict, code, text);
    match &error {
        KeyError::PeerExists { name, .. } => conflict(
            "peer_exists",
            format!("there is a peer `{name}` already; revoke it first, or choose another name"),
        ),
        KeyError::Revoked { name } => conflict(
            "key_revoked",
            format!("`{name}` is revoked; `POST /v1/admin/keys` enrols it again, with rights of your choice"),
        ),
        KeyError::Expired { name, expires_ms } => {
            let at = interlock_bus::keys::time_text(*expires_ms);
            conflict(
                "key_expired",
                format!(
                    "the keys of `{name}` have expired at {at}; say with `expires_in_s` until when the new one is to work"
                ),
            )
        }
        KeyError::OtherFile { .. } => conflict("other_file", error.to_string()),
        KeyError::UnknownPeer { .. } => refused(RefusalKind::Unknown, "unknown_peer", error.to_string()),
        _ => refused(RefusalKind::Failed, "keys", error.to_string()),
    }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// The end of something that lasts so long from now, Unix milliseconds.
fn end_ms(lasting: Duration) -> u64 {
    now_ms().saturating_add(u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX))
}
