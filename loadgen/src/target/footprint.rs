//! What a target's processes use and its files occupy, for targets whose only witness is the kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

use crate::measure::meter::Look;
use crate::measure::process;

/// An embedded store: this process, and what its folder occupies.
pub(crate) fn of_own(folder: &Path) -> Option<Look> {
    let mut look = process::look(None).ok()?;
    look.gauges.occupied_bytes = occupied_bytes(folder).ok();
    Some(look)
}

/// Server processes that are watched beside their load; empty where they are someone else's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched {
    /// The processes, node 1 first.
    pub(crate) pids: Vec<u32>,
    /// What each keeps its data in, in the same order.
    pub(crate) folders: Vec<PathBuf>,
}

impl Watched {
    /// A look at each process that is still there, by node number from 1.
    pub(crate) fn looks(&self) -> Vec<(u64, Look)> {
        let look = |(index, pid): (usize, &u32)| {
            let mut look = process::look(Some(*pid)).ok()?;
            // A Redis rewrites its file in a forked child: the kernel adds the child's I/O to the parent's counters once
            // it has ended, but keeps its CPU time apart.
            if let (Some(cpu_us), Some(children_us)) = (&mut look.counters.cpu_us, ended_children_us(*pid)) {
                *cpu_us += children_us;
            }
            look.gauges.occupied_bytes =
                self.folders.get(index).and_then(|folder| occupied_bytes(folder).ok());
            Some((index as u64 + 1, look))
        };
        self.pids.iter().enumerate().filter_map(look).collect()
    }
}

/// CPU time of a process's children that have ended: fields 16 and 17 of proc_pid_stat(5), microseconds.
fn ended_children_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks_per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(13);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks * 1_000_000 / ticks_per_second)
}

/// Bytes that the file system has allocated to the files under `folder`: holes do not count, preallocated space does.
/// Files that vanish meanwhile (a store deletes its own) do not count.
pub(crate) fn occupied_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => occupied_bytes(&entry.path()),
            // st_blocks counts 512 bytes whatever the file system's block, stat(2).
            Ok(metadata) => Ok(metadata.blocks() * 512),
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => bytes += found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn allocated_blocks_are_counted_not_lengths() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        let sparse = File::create(folder.path().join("inner/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::write(folder.path().join("inner/full"), vec![1; 1 << 20]).unwrap();
        // Without this the file system may not have decided yet what to allocate.
        File::open(folder.path().join("inner/full")).unwrap().sync_all().unwrap();
        let bytes = occupied_bytes(folder.path()).unwrap();
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        assert!(occupied_bytes(&folder.path().join("none")).is_err());
    }

    #[test]
    fn watched_processes_are_numbered_from_one_and_the_gone_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let watched =
            Watched { pids: vec![std::process::id(), u32::MAX], folders: vec![folder.path().to_owned()] };
        let looks = watched.looks();
        assert_eq!(looks.len(), 1);
        assert_eq!(looks[0].0, 1);
        assert_eq!(looks[0].1.gauges.occupied_bytes, Some(0));
        assert!(looks[0].1.gauges.resident_bytes.unwrap() > 0);
        assert!(Watched::default().looks().is_empty());
        let own = of_own(folder.path()).unwrap();
        assert_eq!(own.gauges.occupied_bytes, Some(0));
    }
}
