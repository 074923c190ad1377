//! Where a demo cluster's data lives: a folder on a real file system with room for it.
//!
//! The servers write with O_DIRECT and count on what they wrote being on a device, so a folder in memory (tmpfs) is
//! refused for a temporary place and passed over for the next one.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::report::figures::bytes;

/// A folder for a cluster's data; a temporary one is removed with everything in it when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Held for its drop.
    _temporary: Option<TempDir>,
}

/// Why a folder will not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PlaceError {
    /// It cannot be used at all.
    #[error("cannot use {path}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It lies in memory.
    #[error("{0} lies in memory (tmpfs), where nothing is durable")]
    Memory(PathBuf),
    /// Its file system refuses O_DIRECT.
    #[error("the file system of {0} does not support direct I/O (O_DIRECT)")]
    NoDirectIo(PathBuf),
    /// It has too little room.
    #[error(
        "{path} has {} free, but the data needs {}: free some space, ask for less (--records, --seconds, --size, \
         --scale or --capacity), or name a roomier folder (--data-dir; of an embedded store --data)",
        bytes(*free), bytes(*needed)
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes free to us.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// It is no folder.
    #[error("{0} is no folder: name one, or one that can be made")]
    NoFolder(PathBuf),
    /// No place for a temporary folder was found.
    #[error(
        "no place for the data, which needs {}: {refused}. Free some space, ask for less (--records, --seconds, --size, \
         --scale or --capacity), or name a roomier folder with --data-dir, or --data for an embedded store",
        bytes(*needed)
    )]
    Nowhere {
        /// Bytes needed.
        needed: u64,
        /// What is wrong with each place that was looked at.
        refused: String,
    },
}

impl Place {
    /// A named folder, created if need be, that must have `needed` bytes free (0: it is laid out already).
    pub(crate) fn named(path: &Path, needed: u64) -> Result<Place, PlaceError> {
        let io = |source| PlaceError::Io { path: path.to_owned(), source };
        let existed = path.exists();
        if existed && !path.is_dir() {
            return Err(PlaceError::NoFolder(path.to_owned()));
        }
        std::fs::create_dir_all(path).map_err(io)?;
        let path = path.canonicalize().map_err(io)?;
        if let Err(error) = suits(&path, needed) {
            if !existed {
                // Nothing is in it yet. What cannot be removed is no worse than what is to be told.
                let _ = std::fs::remove_dir(&path);
            }
            return Err(error);
        }
        Ok(Place { path, _temporary: None })
    }

    /// A temporary folder with `needed` bytes free, in the first of these places that suits: the system's temporary
    /// folder, beside this program, the current folder.
    pub(crate) fn temporary(needed: u64) -> Result<Place, PlaceError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        let candidates =
            [Some(std::env::temp_dir()), beside, std::env::current_dir().ok()].into_iter().flatten();
        Place::temporary_in(candidates, needed)
    }

    fn temporary_in(candidates: impl Iterator<Item = PathBuf>, needed: u64) -> Result<Place, PlaceError> {
        let mut refused = Vec::new();
        for candidate in candidates {
            let made = tempfile::Builder::new()
                .prefix("terrane-demo-")
                .tempdir_in(&candidate)
                .map_err(|source| PlaceError::Io { path: candidate.clone(), source });
            match made.and_then(|folder| suits(folder.path(), needed).map(|()| folder)) {
                Ok(folder) => {
                    return Ok(Place { path: folder.path().to_owned(), _temporary: Some(folder) });
                }
                Err(PlaceError::Space { free, .. }) => {
                    refused.push(format!("{} has {} free", candidate.display(), bytes(free)));
                }
                Err(error) => refused.push(format!("{:#}", anyhow::Error::from(error))),
            }
        }
        Err(PlaceError::Nowhere { needed, refused: refused.join("; ") })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a folder can hold a cluster's data.
pub(crate) fn suits(path: &Path, needed: u64) -> Result<(), PlaceError> {
    let io = |source| PlaceError::Io { path: path.to_owned(), source };
    let system = statfs(path).map_err(|errno| io(errno.into()))?;
    if system.filesystem_type() == TMPFS_MAGIC {
        return Err(PlaceError::Memory(path.to_owned()));
    }
    let probe = path.join(".direct-io-probe");
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(&probe);
    let removed = std::fs::remove_file(&probe);
    match opened {
        Ok(_) => removed.map_err(io)?,
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
            return Err(PlaceError::NoDirectIo(path.to_owned()));
        }
        Err(error) => return Err(io(error)),
    }
    let unit = u64::try_from(system.block_size()).unwrap_or(0);
    let free = system.blocks_available().saturating_mul(unit);
    if free < needed {
        return Err(PlaceError::Space { path: path.to_owned(), free, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder on the file system that the build writes to.
    fn real() -> PathBuf {
        std::env::current_exe().unwrap().parent().unwrap().to_owned()
    }

    #[test]
    fn a_temporary_place_is_removed_with_its_contents() {
        let place = Place::temporary_in([real()].into_iter(), 1).unwrap();
        let path = place.path().to_owned();
        std::fs::write(path.join("data"), b"data").unwrap();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn a_named_place_is_created_and_stays() {
        let outer = tempfile::tempdir_in(real()).unwrap();
        let path = outer.path().join("a/b");
        drop(Place::named(&path, 1).unwrap());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "the probe leaves nothing behind");
    }

    #[test]
    fn too_little_room_is_said_before_anything_is_written() {
        let outer = tempfile::tempdir_in(real()).unwrap();
        let error = Place::named(outer.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, PlaceError::Space { needed: u64::MAX, .. }), "{error}");
        assert!(error.to_string().contains("--data-dir"), "{error}");
    }

    #[test]
    fn unusable_places_are_passed_over() {
        let missing = PathBuf::from("/nonexistent");
        let place = Place::temporary_in([missing.clone(), real()].into_iter(), 1).unwrap();
        assert!(place.path().starts_with(real()));
        let error = Place::temporary_in([missing, real()].into_iter(), u64::MAX).unwrap_err();
        assert!(matches!(error, PlaceError::Nowhere { needed: u64::MAX, .. }), "{error}");
        let error = error.to_string();
        for words in ["/nonexistent", &format!("{} has ", real().display()), "--scale", "--data-dir"] {
            assert!(error.contains(words), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Place::named(file.path(), 0), Err(PlaceError::NoFolder(_))));
    }

    #[test]
    fn memory_is_no_place() {
        let shm = Path::new("/dev/shm");
        // Where the machine has no tmpfs there is nothing to refuse.
        if statfs(shm).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) {
            assert!(matches!(Place::named(shm, 0), Err(PlaceError::Memory(_))));
        }
    }
}
