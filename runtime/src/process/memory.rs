//! How much memory process groups use, read from `/proc`.

use std::{collections::HashMap, fs, path::Path};

/// Resident bytes of each of `groups` that has a process. Memory that processes share is counted in each.
pub fn resident(groups: &[u32]) -> HashMap<u32, u64> {
    // What cannot be read has ended meanwhile.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut bytes = HashMap::new();
    for entry in entries {
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if let Some((group, resident)) = is_process.then(|| of_process(&entry.path())).flatten()
            && groups.contains(&group)
        {
            *bytes.entry(group).or_default() += resident;
        }
    }
    bytes
}

/// Process group and resident bytes.
fn of_process(directory: &Path) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name, in parentheses, may hold anything. Behind it: state, parent, group.
    let group = stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()?;
    let statm = fs::read_to_string(directory.join("statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some((group, pages * u64::try_from(page).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_group_uses_memory_and_one_that_is_not_there_is_left_out() {
        let ours = nix::unistd::getpgrp().as_raw().cast_unsigned();
        let found = resident(&[ours, u32::MAX]);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&ours]);
        assert!(found[&ours] > 1 << 20, "{found:?}");
    }
}
