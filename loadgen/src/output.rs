//! Files that others read later: reports, logs, records, traces.
//!
//! Most are composed in memory and written at the end ([`whole`]); that they can be is looked at before anything is
//! measured ([`check`]). Some grow while load runs ([`Growing`]): as `FILE.unfinished`, which the process leaves behind
//! only if it is killed.
//!
//! Invariants:
//! - Under its own name a file is complete, or it is what was there before: nobody ever sees it empty or half written.
//! - What is no regular file (a pipe, `/dev/stdout`) is someone's open file: it is written to, and never replaced.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::{AccessFlags, access};

use crate::cli::usage;

/// What the name of a file ends in while it is not complete.
const UNFINISHED: &str = ".unfinished";

/// Where the bytes of a file go.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// Beside this regular file, which they replace when they are complete; or nothing is there yet.
    Beside(PathBuf),
    /// Into what is there already.
    Into(PathBuf),
}

impl Destination {
    fn of(path: &Path) -> io::Result<Destination> {
        let named = std::path::absolute(path)?;
        if named.starts_with("/dev") || named.starts_with("/proc") {
            return Ok(Destination::Into(named));
        }
        match named.canonicalize() {
            Ok(file) if file.is_file() => Ok(Destination::Beside(file)),
            Ok(folder) if folder.is_dir() => Err(ErrorKind::IsADirectory.into()),
            Ok(other) => Ok(Destination::Into(other)),
            // A link to what is not there yet: opening it makes that.
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_symlink() => {
                Ok(Destination::Into(named))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Destination::Beside(named)),
            Err(error) => Err(error),
        }
    }
}

/// Whether a file could be written at its end, without changing anything: that it cannot is better said before a long
/// run than after. `option` is what named it.
///
/// # Errors
/// If it cannot.
pub(crate) fn check(option: &str, path: &Path) -> anyhow::Result<()> {
    let checked = || -> io::Result<()> {
        match Destination::of(path)? {
            Destination::Into(there) => Ok(access(&there, AccessFlags::W_OK)?),
            Destination::Beside(file) => {
                if file.exists() {
                    access(&file, AccessFlags::W_OK)?;
                }
                beside(&file).map(drop)
            }
        }
    };
    checked().with_context(|| cannot_be_written(option, path))
}

/// Whether a file is replaced when it is written, so that it can be written again and again.
pub(crate) fn is_replaced(path: &Path) -> bool {
    matches!(Destination::of(path), Ok(Destination::Beside(_)))
}

/// [`check`] of several options, no two of which may name one file.
///
/// # Errors
/// The first that cannot be written; [`WrongUsage`](crate::cli::WrongUsage) if two are one.
pub(crate) fn check_all<'a>(
    files: impl IntoIterator<Item = (&'static str, &'a Option<PathBuf>)>,
) -> anyhow::Result<()> {
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (option, path) in files {
        let Some(path) = path else { continue };
        check(option, path)?;
        // To a terminal or a pipe several may go, one after another.
        let Ok(Destination::Beside(file)) = Destination::of(path) else { continue };
        if let Some((other, _)) = seen.iter().find(|(_, known)| *known == file) {
            usage(false, &format!("{other} and {option} are one file, {}", path.display()))?;
        }
        seen.push((option, file));
    }
    Ok(())
}

/// In the words that every option has.
pub(crate) fn cannot_be_written(option: &str, path: &Path) -> String {
    format!("{option} {}: it cannot be written", path.display())
}

/// Writes a file from its beginning to its end, durably; an older one stays if that fails.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match Destination::of(path)? {
        Destination::Into(there) => File::create(there)?.write_all(bytes),
        Destination::Beside(file) => {
            let mut new = beside(&file)?;
            new.write_all(bytes)?;
            new.as_file().sync_all()?;
            if let Ok(old) = std::fs::metadata(&file) {
                new.as_file().set_permissions(old.permissions())?;
            }
            new.persist(&file).map(drop).map_err(|error| error.error)
        }
    }
}

/// A temporary file in a file's folder, gone when it is dropped, with the permissions of any new file.
fn beside(file: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut prefix = file.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    prefix.push(".");
    let folder = file.parent().ok_or(ErrorKind::InvalidInput)?;
    let permissions = Permissions::from_mode(0o666);
    let made = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(UNFINISHED)
        .permissions(permissions)
        .tempfile_in(folder);
    made.map_err(|error| match error.kind() {
        ErrorKind::NotFound => io::Error::other(format!("there is no folder {}", folder.display())),
        // Without the temporary file's name, which tells nobody anything.
        kind => io::Error::new(kind, format!("no file can be made in {}: {kind}", folder.display())),
    })
}

/// What a file is called while it grows.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// What is done where a file of this kind was left unfinished before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// It is written anew: what it holds proves nothing.
    Replaced,
    /// It stays, and beginning fails ([`ErrorKind::AlreadyExists`]).
    Refused,
}

/// A file that grows: it gets its name when it is finished. One that is dropped before stays as it is, unfinished.
#[derive(Debug)]
pub(crate) struct Growing {
    file: File,
    /// What it is called until then, and from then on; `None`: what was there is written to.
    names: Option<(PathBuf, PathBuf)>,
}

impl Growing {
    /// Begins it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn begin(path: &Path, leftover: Leftover) -> io::Result<Growing> {
        let file = match Destination::of(path)? {
            Destination::Into(there) => return Ok(Growing { file: File::create(there)?, names: None }),
            Destination::Beside(file) => file,
        };
        let until_then = unfinished(&file);
        let mut options = OpenOptions::new();
        options.write(true);
        match leftover {
            Leftover::Replaced => options.create(true).truncate(true),
            Leftover::Refused => options.create_new(true),
        };
        Ok(Growing { file: options.open(&until_then)?, names: Some((until_then, file)) })
    }

    /// Waits until what was written is durable, and gives the file its name, in place of any older one.
    ///
    /// # Errors
    /// If that fails; then it may still be unfinished.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let Some((until_then, name)) = &self.names else { return Ok(()) };
        self.file.sync_all()?;
        std::fs::rename(until_then, name)?;
        self.names = None;
        Ok(())
    }

    /// Removes it: there is nothing in it worth a name. What cannot be removed stays, unfinished.
    pub(crate) fn discard(&mut self) {
        if let Some((until_then, _)) = self.names.take() {
            let _ = std::fs::remove_file(until_then);
        }
    }

    /// What it is called as long as it is unfinished.
    pub(crate) fn unfinished(&self) -> Option<&Path> {
        self.names.as_ref().map(|(until_then, _)| until_then.as_path())
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Emptied at the beginning, an older report was gone as soon as a run was begun that came to nothing.
    #[test]
    fn looking_whether_a_file_can_be_written_changes_nothing() {
        let folder = folder();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        std::fs::write(&old, "before").unwrap();
        check("--json", &old).unwrap();
        check("--json", &new).unwrap();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "before");
        assert_eq!(names(folder.path()), ["old"]);
        for path in [folder.path(), &folder.path().join("none/report"), &old.join("report")] {
            let error = format!("{:#}", check("--json", path).unwrap_err());
            assert!(
                error.starts_with(&format!("--json {}: it cannot be written: ", path.display())),
                "{error}"
            );
        }
    }

    #[test]
    fn one_file_cannot_be_two() {
        let folder = folder();
        let [a, b, again] = ["a", "b", "x/../a"].map(|name| folder.path().join(name));
        std::fs::create_dir(folder.path().join("x")).unwrap();
        std::fs::write(&a, "").unwrap();
        check_all([("--json", &Some(a.clone())), ("--csv", &Some(b)), ("--html", &None)]).unwrap();
        let error = check_all([("--json", &Some(a)), ("--csv", &Some(again))]).unwrap_err();
        assert!(format!("{error:#}").contains("--json and --csv are one file"), "{error:#}");
        let tty = Some(PathBuf::from("/dev/null"));
        check_all([("--json", &tty), ("--csv", &tty)]).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_permissions() {
        let folder = folder();
        let (file, link) = (folder.path().join("report"), folder.path().join("link"));
        std::fs::write(&file, "before").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        let open = File::open(&file).unwrap();
        whole(&link, b"after").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "after");
        assert_eq!(io::read_to_string(open).unwrap(), "before", "not rewritten in place");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(names(folder.path()), ["link", "report"]);
    }

    /// As any other program would make it: not for the owner's eyes only, as temporary files are.
    #[test]
    fn a_new_file_has_the_usual_permissions() {
        let folder = folder();
        let [ours, usual] = ["ours", "usual"].map(|name| folder.path().join(name));
        whole(&ours, b"").unwrap();
        std::fs::write(&usual, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&usual));
    }

    #[test]
    fn what_is_no_regular_file_is_written_to() {
        let folder = folder();
        let (dangling, made) = (folder.path().join("dangling"), folder.path().join("made"));
        symlink(&made, &dangling).unwrap();
        whole(&dangling, b"through the link").unwrap();
        assert!(dangling.is_symlink());
        assert_eq!(std::fs::read_to_string(&made).unwrap(), "through the link");
        whole(Path::new("/dev/null"), b"gone").unwrap();
        check("--json", Path::new("/dev/full")).unwrap();
        let error = whole(Path::new("/dev/full"), b"no room").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let full = folder.path().join("full");
        symlink("/dev/full", &full).unwrap();
        let mut growing = Growing::begin(&full, Leftover::Refused).unwrap();
        assert_eq!(growing.write(b"no room").unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(names(folder.path()), ["dangling", "full", "made"]);
        let replaced = [&made, &full, Path::new("/dev/stdout")].map(is_replaced);
        assert_eq!(replaced, [true, false, false]);
    }

    #[test]
    fn what_grows_has_its_name_when_it_is_finished() {
        let folder = folder();
        let path = folder.path().join("log");
        std::fs::write(&path, "before").unwrap();
        let mut growing = Growing::begin(&path, Leftover::Refused).unwrap();
        growing.write_all(b"after").unwrap();
        assert_eq!(growing.unfinished(), Some(&*unfinished(&path)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        growing.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(names(folder.path()), ["log"]);

        let mut growing = Growing::begin(&path, Leftover::Refused).unwrap();
        growing.write_all(b"nothing worth a name").unwrap();
        growing.discard();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(names(folder.path()), ["log"]);
    }

    /// As a process that is killed leaves it.
    #[test]
    fn what_was_left_unfinished_is_replaced_only_where_it_proves_nothing() {
        let folder = folder();
        let path = folder.path().join("log");
        let mut growing = Growing::begin(&path, Leftover::Refused).unwrap();
        growing.write_all(b"left").unwrap();
        drop(growing);
        assert_eq!(names(folder.path()), ["log.unfinished"]);
        let error = Growing::begin(&path, Leftover::Refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(unfinished(&path)).unwrap(), "left");
        Growing::begin(&path, Leftover::Replaced).unwrap().finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
