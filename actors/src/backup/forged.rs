//! Backups that [`create`](super::create) would never make, for tests: sealed as they should be, with another content.

use std::{fs, path::Path};

use interlock_bus::crypto;

use super::{
    header::Header,
    manifest::{Manifest, Part, PartKind},
    open::Opened,
    sealed::SealingWriter,
};
use crate::store::{DataKey, Passphrase};

/// Seals the backup at `path` anew, after `change` has changed its database, which is encrypted with the given key.
pub(crate) fn forge(path: &Path, passphrase: &Passphrase, change: impl Fn(&Path, &DataKey)) {
    let mut opened = Opened::new(path, passphrase).unwrap();
    let place = tempfile::tempdir().unwrap();
    let key = DataKey::from_digits(&opened.manifest.snapshot_key, place.path()).unwrap();
    let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
    for mut part in opened.manifest.public.parts.clone() {
        let mut content = Vec::new();
        let take = |piece: &[u8]| {
            content.extend_from_slice(piece);
            Ok(())
        };
        opened.part(&part, take).unwrap();
        if part.kind == PartKind::Database {
            let file = place.path().join(&part.name);
            fs::write(&file, &content).unwrap();
            change(&file, &key);
            content = fs::read(&file).unwrap();
            part.bytes = content.len() as u64;
        }
        parts.push((part, content));
    }
    let mut public = opened.manifest.public.clone();
    public.parts = parts.iter().map(|(part, _)| part.clone()).collect();
    let manifest =
        Manifest::new(public, opened.manifest.data_key.clone(), opened.manifest.snapshot_key.clone());
    let table = manifest.encode();
    let old = opened.header.clone();
    let head = fs::read(path).unwrap().first_chunk().copied().unwrap();
    let keys = old.unlock(&head, passphrase, path).unwrap();
    let (stream, head) = keys.sealer();
    let header = Header { plain_bytes: manifest.plain_bytes(&table), stream: head, ..old };
    let head = header.encode(&keys);
    let mut writer = SealingWriter::begin(Vec::new(), path, stream, &head, header.chunk_bytes).unwrap();
    writer.push(&(table.len() as u32).to_le_bytes()).unwrap();
    writer.push(&table).unwrap();
    for (_, content) in &parts {
        writer.push(content).unwrap();
        writer.push(&crypto::digest(content)).unwrap();
    }
    fs::write(path, writer.finish().unwrap()).unwrap();
}
