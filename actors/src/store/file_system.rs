//! Where a database may lie: the write-ahead log needs memory that all processes share, which no network gives.

use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use super::error::StoreError;

/// Types of file systems whose files other machines, or a program, may change behind the kernel's back (statfs(2)). Their
/// locks and shared memory are not those of one machine: a write-ahead log on them loses commits.
const REMOTE: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    // virtiofs has the number of FUSE.
    (0x6573_5546, "FUSE or virtiofs"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0xaad7_aaea, "PanFS"),
];

/// The name of a file system that is refused, by its type.
fn refused(magic: u32) -> Option<&'static str> {
    REMOTE.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

/// Refuses a place on a network. What cannot be looked at is for the opening to complain about.
pub(super) fn check(database: &Path) -> Result<(), StoreError> {
    let mut place: PathBuf = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
    loop {
        match statfs(&place) {
            // The type is 32 bits wide, whatever the machine's word for it.
            Ok(about) => match refused(about.filesystem_type().0 as u32) {
                Some(kind) => {
                    return Err(StoreError::NetworkFileSystem { path: database.to_owned(), kind });
                }
                None => return Ok(()),
            },
            // Not there yet: its parent decides.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) if place.pop() => {}
            Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_refused_and_the_usual_disks_are_not() {
        for (magic, name) in
            [(0x6969, "NFS"), (0xff53_4d42, "SMB"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE")]
        {
            assert!(refused(magic).is_some_and(|found| found.contains(name)), "{name}");
        }
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs, f2fs, bcachefs.
        for magic in [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x0102_1994,
            0x794c_7630,
            0x2fc1_2fc1,
            0xf2f5_2010,
            0xca45_1a4e,
        ] {
            assert_eq!(refused(magic), None, "{magic:x}");
        }
        assert_eq!(StoreError::NetworkFileSystem { path: "x".into(), kind: "NFS" }.exit_code(), 2);
    }

    #[test]
    fn a_place_that_is_not_there_yet_is_judged_by_what_it_will_lie_in() {
        let place = tempfile::tempdir().unwrap();
        check(&place.path().join("deep/er/interlock.db")).unwrap();
        check(Path::new("/dev/shm/interlock-not-there.db")).unwrap();
        check(Path::new("interlock.db")).unwrap();
    }
}
