//! What tests of the hub begin with.

use super::*;

impl Hub {
    /// A native session that has said hello and has every right, also to listen to `$sys`.
    pub(in crate::broker) fn greeted(&mut self, peer: &str) -> SessionId {
        let permissions = Permissions::from_lists(&["#"], &["#", "$sys/#"], &["#"], &["#"]).unwrap();
        let id = self.open(SessionInfo {
            peer: peer.parse().unwrap(),
            key: None,
            kind: SessionKind::Native,
            address: String::new(),
            server_key: None,
            permissions: permissions.into(),
        });
        let (program, peer) = (String::new(), String::new());
        self.record(id, Record::Hello { major: 1, minor: 0, program, peer, epoch: [0; 16] });
        id
    }
}

/// A subscription that drops the newest, with the bounds that the broker gives.
pub(in crate::broker) fn subscription(id: u32, serve: bool, filter: &str) -> SubscribeSpec {
    SubscribeSpec {
        id,
        serve,
        retained: false,
        probes: false,
        overflow: Overflow::DropNewest,
        queue_messages_max: 0,
        queue_bytes_max: 0,
        filter: filter.to_owned(),
        group: String::new(),
    }
}
