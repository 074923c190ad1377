//! The JSON while a comparison is under way: written after every measurement, so that hours of work are not lost with
//! the last one.
//!
//! Invariant: a regular file is replaced as a whole, never seen half written, and what it held stays if writing fails.

use std::path::Path;

use anyhow::Context;
use tempfile::NamedTempFile;

use crate::compare::table::Comparison;
use crate::report::write_json;

/// Writes what is known so far, if `path` is a file that can be replaced; that it could not be written is a warning.
pub(crate) fn intermediate(table: &Comparison, path: &Path) {
    if let Some(Err(error)) = replaceable(path).map(|file| replace(table, &file)) {
        eprintln!("warning: {error:#}; it is tried again after the next measurement");
    }
}

/// Writes everything.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn last(table: &Comparison, path: &Path) -> anyhow::Result<()> {
    match replaceable(path) {
        Some(file) => replace(table, &file),
        None => write_json(table, path),
    }
}

/// The regular file that a path leads to. What lies in /dev or /proc (`/dev/stdout`) is someone's open file, which
/// must be written to and not replaced.
fn replaceable(path: &Path) -> Option<std::path::PathBuf> {
    let named = std::path::absolute(path).ok()?;
    if named.starts_with("/dev") || named.starts_with("/proc") {
        return None;
    }
    named.canonicalize().ok().filter(|file| file.is_file())
}

fn replace(table: &Comparison, path: &Path) -> anyhow::Result<()> {
    let told = || format!("cannot write the table to {}", path.display());
    let folder = path.parent().with_context(told)?;
    let permissions = std::fs::metadata(path).with_context(told)?.permissions();
    let beside = NamedTempFile::new_in(folder).with_context(told)?;
    write_json(table, beside.path())?;
    beside.as_file().set_permissions(permissions).with_context(told)?;
    beside.persist(path).map(drop).with_context(told)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::compare::table::tests::comparison;

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("table.json"), folder.path().join("link"));
        std::fs::write(&file, "before").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let open = std::fs::File::open(&file).unwrap();
        intermediate(&comparison(), &link);
        assert!(std::fs::read_to_string(&file).unwrap().contains("\"command\": \"compare\""));
        assert_eq!(std::io::read_to_string(open).unwrap(), "before", "not rewritten in place");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn what_cannot_be_written_fails_at_the_end_only() {
        let full = Path::new("/dev/full");
        intermediate(&comparison(), full);
        let error = format!("{:#}", last(&comparison(), full).unwrap_err());
        assert!(error.contains("/dev/full"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone/table.json");
        intermediate(&comparison(), &gone);
        assert!(last(&comparison(), &gone).is_err());
    }
}
