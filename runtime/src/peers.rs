//! The peers that the runtime enrols, and what each may do on the bus.

use interlock_actors::topics;
use interlock_bus::{KeyStore, PeerName, Permissions, keys::KeyError};

use crate::{admin, builder::Extra, site::Site};

/// The peer that the runtime itself is.
pub(crate) const RUNTIME: &str = "runtime";

/// What each built-in peer may do. Written to the registry at the first start. Edits there stay; what a
/// later version adds here or takes away is added or taken away there.
pub(crate) fn permissions() -> [(&'static str, Permissions); 7] {
    let rights = |publish: &[&str], subscribe: &[&str], serve: &[&str], request: &[&str]| {
        Permissions::from_lists(publish, subscribe, serve, request)
            .expect("the filters of this list are valid; a test reads it")
    };
    let (logs, consumer) = (topics::LOGS_ALL, topics::LOG_CONSUMER_ALL);
    [
        ("runtime", rights(&["$dlq/runtime"], &["$peers/#", "$sys/#"], &[admin::ALL], &["$sys/broker/#"])),
        ("log-consumer", rights(&["$dlq/log-consumer", consumer], &[logs], &[consumer], &[])),
        ("log-transport", rights(&["$dlq/log-transport", logs], &[consumer], &[], &[consumer])),
        // In a process of its own it brings its own log transport, which speaks of itself as well.
        (
            "model",
            rights(
                &["$dlq/model", "logs/model/#", "logs/log-transport/#"],
                &[consumer],
                &["modelservice/#"],
                &[consumer],
            ),
        ),
        (
            "conversation",
            rights(
                &["$dlq/conversation", "conversation/turn/#"],
                &[topics::USER_INPUT],
                &[topics::USER_INPUT],
                &["modelservice/#"],
            ),
        ),
        (
            "gateway",
            rights(
                &["$dlq/gateway"],
                &[],
                &[],
                &[topics::USER_INPUT, topics::MODELS, admin::status_topic().as_str()],
            ),
        ),
        ("operator", rights(&["#"], &["#", "$sys/#", "$peers/#", "$dlq/#"], &["#"], &["#", "$sys/#"])),
    ]
}

/// Enrols every peer of the tree that is not enrolled yet. Rights of programs follow the configuration.
pub(crate) fn enrol(site: &Site, extras: &[Extra]) -> Result<(), KeyError> {
    let keys: &KeyStore = &site.keys;
    for (name, permissions) in permissions() {
        keys.ensure(&name_of(name), &permissions, &site.endpoints)?;
        keys.grant_built_in(&name_of(name), &permissions)?;
    }
    for extra in extras {
        keys.ensure(&extra.name, &extra.permissions, &site.endpoints)?;
        keys.set_permissions(&extra.name, &extra.permissions)?;
    }
    for program in &site.config().programs {
        let permissions = program.permissions();
        keys.ensure(&program.name, &permissions, &site.endpoints)?;
        keys.set_permissions(&program.name, &permissions)?;
    }
    Ok(())
}

/// A name of the list above.
pub(crate) fn name_of(name: &str) -> PeerName {
    name.parse().expect("the names of the built-in peers are valid; a test reads them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    #[test]
    fn every_built_in_name_is_taken_and_every_filter_is_valid() {
        for (name, permissions) in permissions() {
            assert!(schema::NAMES_TAKEN.contains(&name), "{name}");
            assert!(!permissions.is_empty());
        }
    }
}
