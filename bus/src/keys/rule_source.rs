//! Where in `authorized.toml` a rule stands, for those who ask why.

use std::path::{Path, PathBuf};

use super::Right;
use crate::{peer::PeerName, topic::TopicFilter};

/// The file whose rules are in force, as it was when it was read.
#[derive(Debug)]
pub struct RuleSource {
    path: PathBuf,
    text: String,
}

impl RuleSource {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line of a filter in the list `allow` or `deny` of one right.
    pub fn line_of_rule(
        &self,
        peer: &PeerName,
        right: Right,
        list: &str,
        filter: &TopicFilter,
    ) -> Option<usize> {
        let document = toml_edit::Document::parse(self.text.as_str()).ok()?;
        let peer = document.get("peers")?.get(peer.as_str())?;
        let filters = peer.get(right.as_str())?.get(list)?.as_array()?;
        let stands = filters.iter().find(|value| value.as_str() == Some(filter.as_str()))?;
        self.line_at(stands.span()?.start)
    }

    /// The line on which a peer's entry begins.
    pub fn line_of_peer(&self, peer: &PeerName) -> Option<usize> {
        let document = toml_edit::Document::parse(self.text.as_str()).ok()?;
        let peer = document.get("peers")?.get(peer.as_str())?;
        self.line_at(peer.span()?.start)
    }

    fn line_at(&self, byte: usize) -> Option<usize> {
        Some(self.text.get(..byte)?.matches('\n').count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_on_its_line_in_either_form_of_a_table() {
        let text = "# people\n[peers.alice]\npublic_key = 'k'\npublish = { allow = ['a/#'], deny = ['a/b'] }\n\n\
                    [peers.bob]\n[peers.bob.publish]\nallow = [\n  'x',\n  'y/+',\n]\n";
        let source = RuleSource::new(Path::new("authorized.toml"), text);
        let line = |peer: &str, list, filter: &str| {
            source.line_of_rule(&peer.parse().unwrap(), Right::Publish, list, &filter.parse().unwrap())
        };
        assert_eq!(line("alice", "allow", "a/#"), Some(4));
        assert_eq!(line("alice", "deny", "a/b"), Some(4));
        assert_eq!(line("bob", "allow", "y/+"), Some(10));
        assert_eq!(line("bob", "deny", "y/+"), None);
        assert_eq!(source.line_of_peer(&"bob".parse().unwrap()), Some(6));
    }
}
