//! Notices edits of the files a broker was started from: `authorized.toml` and `broker.toml`.
//!
//! The kernel says at once that something happened in their directory (inotify); a look at both files
//! every tick finds what it could not say, as on a network file system. What is read is always the
//! whole file: one that somebody has begun to write is read when it is closed, what was read while somebody
//! touched it is forgotten, and one that was not understood changes nothing and is read again when it changes again.

use std::{
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mio::{Interest, Registry as Sockets, Token, unix::SourceFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::keys::{BrokerKeys, KeyError, Registry};

/// How long an empty file must stay so, with nothing said of it, until it is believed.
const EMPTY_DOUBTED: Duration = Duration::from_secs(1);

/// The files of one broker.
#[derive(Debug)]
pub(super) struct KeyStoreWatch {
    registry: Option<WatchedFile>,
    broker_keys: Option<WatchedFile>,
    /// `None` if the system has none to give; then the looks of every tick remain.
    inotify: Option<Inotify>,
}

impl KeyStoreWatch {
    /// Watches these files, and wakes `sockets` with `token` when one of them may have changed.
    pub(super) fn new(
        registry: Option<PathBuf>,
        broker_keys: Option<PathBuf>,
        sockets: &Sockets,
        token: Token,
    ) -> Self {
        let paths = [&registry, &broker_keys];
        let directories = paths.into_iter().flatten().filter_map(|path| path.parent());
        let inotify = watch(directories, sockets, token)
            .inspect_err(
                |error| tracing::warn!(%error, "edits of the key store are noticed within a second only"),
            )
            .ok();
        Self {
            registry: registry.map(WatchedFile::new),
            broker_keys: broker_keys.map(WatchedFile::new),
            inotify,
        }
    }

    /// Takes in what the kernel has said: which file is being written, and which one is whole again.
    fn listen(&mut self) {
        // Empty when nothing waits; other failures leave the looks of every tick.
        while let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) {
            for event in events {
                for file in [&mut self.registry, &mut self.broker_keys].into_iter().flatten() {
                    // Events that name no file say that some were lost: look at all.
                    if event.name.is_none() || event.name.as_deref() == file.path.file_name() {
                        let has_begun = event.name.is_some() && event.mask.contains(AddWatchFlags::IN_MODIFY);
                        file.writing = has_begun.then(|| file.writing.unwrap_or_default());
                        file.touched += 1;
                    }
                }
            }
        }
    }

    /// Once for each file that was being written at the last tick already, its path: an edit that is delayed is told of.
    pub(super) fn unfinished(&mut self) -> Option<PathBuf> {
        self.listen();
        let mut late = None;
        for file in [&mut self.registry, &mut self.broker_keys].into_iter().flatten() {
            file.writing = file.writing.map(|ticks| ticks.saturating_add(1));
            if file.writing == Some(2) {
                late = Some(file.path.clone());
            }
        }
        late
    }

    /// The edited registry, or why it cannot be read; `None` if nothing has changed, or not to its end.
    pub(super) fn registry(&mut self) -> Option<Result<Registry, KeyError>> {
        self.read(|watch| watch.registry.as_mut(), Registry::load)
    }

    /// The broker's keys, likewise.
    pub(super) fn broker_keys(&mut self) -> Option<Result<BrokerKeys, KeyError>> {
        self.read(|watch| watch.broker_keys.as_mut(), BrokerKeys::load)
    }

    /// What is in a file that has changed, if nobody touched it while it was read.
    fn read<T>(
        &mut self,
        file: impl Fn(&mut Self) -> Option<&mut WatchedFile>,
        load: impl Fn(&Path) -> Result<T, KeyError>,
    ) -> Option<Result<T, KeyError>> {
        /// Somebody who touches it more often than this is left for the next tick.
        const READS_MAX: usize = 8;
        self.listen();
        for _ in 0..READS_MAX {
            let file_read = file(self)?;
            let (touched, read) = (file_read.touched, load(file_read.changed()?));
            self.listen();
            let file_read = file(self)?;
            if file_read.touched == touched && stamp(&file_read.path) == file_read.seen {
                return Some(read);
            }
            file_read.seen = None;
        }
        None
    }
}

fn watch<'a>(
    directories: impl Iterator<Item = &'a Path>,
    sockets: &Sockets,
    token: Token,
) -> std::io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let edits = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ONLYDIR;
    for directory in directories {
        // A path without a directory in it is in the current one. Twice the same is one watch.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        inotify.add_watch(directory, edits)?;
    }
    sockets.register(&mut SourceFd(&inotify_fd(&inotify)), token, Interest::READABLE)?;
    Ok(inotify)
}

fn inotify_fd(inotify: &Inotify) -> std::os::fd::RawFd {
    use std::os::fd::AsFd;
    inotify.as_fd().as_raw_fd()
}

/// One file, and what it looked like when it was last read.
#[derive(Debug)]
struct WatchedFile {
    path: PathBuf,
    seen: Option<Stamp>,
    /// What the kernel had said when it was first seen empty, and when that was.
    doubted: Option<(u64, Instant)>,
    /// Ticks since somebody began to write it; `None` if it is whole.
    writing: Option<u32>,
    /// How often the kernel has said something of it.
    touched: u64,
}

impl WatchedFile {
    /// The first look always reads: an edit made between the broker's own reading and this moment would
    /// never be noticed otherwise.
    fn new(path: PathBuf) -> Self {
        Self { path, seen: None, doubted: None, writing: None, touched: 0 }
    }

    /// Its path, if it has changed since this was last asked and nobody is writing it.
    fn changed(&mut self) -> Option<&Path> {
        if self.writing.is_some() {
            return None;
        }
        let now = stamp(&self.path);
        if now == self.seen {
            return None;
        }
        if now.is_some_and(|now| now.bytes == 0) && self.is_doubtful(Instant::now()) {
            return None;
        }
        (self.seen, self.doubted) = (now, None);
        Some(&self.path)
    }
}

impl WatchedFile {
    /// Whether it may be empty only because somebody has begun to write it: the kernel empties a file first and says so
    /// then. It is meant to be empty if nothing more is said for a while.
    fn is_doubtful(&mut self, now: Instant) -> bool {
        let (touched, since) = *self.doubted.get_or_insert((self.touched, now));
        if touched != self.touched {
            self.doubted = Some((self.touched, now));
            return true;
        }
        now - since < EMPTY_DOUBTED
    }
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

/// `None` if there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Some(Stamp { inode: metadata.ino(), modified, bytes: metadata.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyStore;

    const TOKEN: Token = Token(7);

    fn store() -> (tempfile::TempDir, KeyStore) {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        (directory, store)
    }

    fn issue(store: &KeyStore, name: &str) {
        let permissions = crate::Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        store.issue(&name.parse().unwrap(), &permissions, &[], None).unwrap();
    }

    #[test]
    fn an_edit_made_before_the_watch_began_is_read_at_the_first_look_and_none_is_read_twice() {
        let (_directory, store) = store();
        issue(&store, "early");
        let poll = mio::Poll::new().unwrap();
        let paths = (Some(store.registry_path()), Some(store.broker_keys_path()));
        let mut watch = KeyStoreWatch::new(paths.0, paths.1, poll.registry(), TOKEN);
        assert_eq!(watch.registry().unwrap().unwrap().peers().count(), 1);
        assert!(watch.registry().is_none());
        assert!(watch.broker_keys().unwrap().is_ok() && watch.broker_keys().is_none());
        issue(&store, "later");
        assert_eq!(watch.registry().unwrap().unwrap().peers().count(), 2);
        assert!(watch.broker_keys().is_none());
    }

    #[test]
    fn an_edit_wakes_whoever_waits_each_time() {
        let (_directory, store) = store();
        let mut poll = mio::Poll::new().unwrap();
        let mut watch = KeyStoreWatch::new(Some(store.registry_path()), None, poll.registry(), TOKEN);
        let mut events = mio::Events::with_capacity(4);
        for name in ["one", "two", "three"] {
            issue(&store, name);
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.iter().any(|event| event.token() == TOKEN), "{name}");
            watch.registry().unwrap().unwrap();
        }
    }

    #[test]
    fn a_file_that_is_being_written_is_read_when_it_is_closed() {
        let (_directory, store) = store();
        issue(&store, "one");
        issue(&store, "two");
        let poll = mio::Poll::new().unwrap();
        let mut watch = KeyStoreWatch::new(Some(store.registry_path()), None, poll.registry(), TOKEN);
        watch.registry().unwrap().unwrap();
        let whole = std::fs::read_to_string(store.registry_path()).unwrap();
        let half = whole.find("[peers.two]").unwrap();
        let mut file = std::fs::OpenOptions::new().write(true).open(store.registry_path()).unwrap();
        file.set_len(0).unwrap();
        assert!(watch.registry().is_none(), "empty, for now");
        std::io::Write::write_all(&mut file, &whole.as_bytes()[..half]).unwrap();
        assert!(watch.registry().is_none(), "a whole table, but not the whole file");
        assert_eq!((watch.unfinished(), watch.unfinished()), (None, Some(store.registry_path())));
        assert_eq!(watch.unfinished(), None, "told of already");
        std::io::Write::write_all(&mut file, &whole.as_bytes()[half..]).unwrap();
        drop(file);
        assert_eq!(watch.registry().unwrap().unwrap().peers().count(), 2);
    }

    #[test]
    fn a_file_that_another_process_truncates_and_writes_again_and_again_is_whole_whenever_it_is_read() {
        let (_directory, store) = store();
        issue(&store, "one");
        issue(&store, "two");
        let poll = mio::Poll::new().unwrap();
        let mut watch = KeyStoreWatch::new(Some(store.registry_path()), None, poll.registry(), TOKEN);
        watch.registry().unwrap().unwrap();
        // In two writes, so that a part may be read as well as nothing at all.
        let script = r#"whole=$(cat "$0"); half=${whole%%\[peers.two]*}; rest=${whole#"$half"}
            i=0; while [ $i -lt 2000 ]; do { printf '%s' "$half"; printf '%s\n' "$rest"; } > "$0"; i=$((i+1)); done"#;
        let mut writer = std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(store.registry_path())
            .spawn()
            .unwrap();
        let mut read = 0;
        loop {
            let has_ended = writer.try_wait().unwrap().is_some();
            if let Some(registry) = watch.registry() {
                assert_eq!(registry.unwrap().peers().count(), 2);
                read += 1;
            }
            if has_ended {
                break;
            }
        }
        assert!(read > 0, "what it wrote last was never read");
    }

    #[test]
    fn an_empty_file_is_believed_when_nothing_is_said_of_it_for_a_while() {
        let mut file = WatchedFile::new("authorized.toml".into());
        let begun = Instant::now();
        assert!(file.is_doubtful(begun) && file.is_doubtful(begun + EMPTY_DOUBTED / 2));
        // Written again meanwhile, and perhaps begun to be written once more.
        file.touched += 2;
        let seen_again = begun + EMPTY_DOUBTED * 2;
        assert!(file.is_doubtful(seen_again) && file.is_doubtful(seen_again + EMPTY_DOUBTED / 2));
        assert!(!file.is_doubtful(seen_again + EMPTY_DOUBTED));
    }
}
