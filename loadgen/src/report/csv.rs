//! Tables as CSV (RFC 4180): the timeline of a phase, and rows of any other kind, such as those of a
//! comparison.
//!
//! The first line names the columns. They are the fields of the row's type, in their order, with the unit in
//! the name; columns may be added at the end, none changes its meaning. What is not known is an empty field.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::measure::timeline::Second;
use crate::output;

/// The columns of the timeline: the fields of [`Second`], which says what they are. `device_written_bytes`,
/// `user_bytes` and `cpu_seconds` count from the phase's start, `resident_bytes` is of the moment, all others
/// are of the interval.
const TIMELINE_COLUMNS: &[&str] = &[
    "at_seconds",
    "seconds",
    "step",
    "operations",
    "failed",
    "reads",
    "writes",
    "read_p50_us",
    "read_p99_us",
    "write_p50_us",
    "write_p99_us",
    "device_written_bytes",
    "user_bytes",
    "cpu_seconds",
    "resident_bytes",
];

/// Writes a phase's timeline.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, seconds: &[Second]) -> anyhow::Result<()> {
    table(path, TIMELINE_COLUMNS, seconds)
}

/// Writes rows under the columns given, which must be the fields of the row's type in their order (a test of
/// the type's owner should say so). Rows are flat: fields are numbers, texts, flags, unit variants, and
/// options of these.
///
/// # Errors
/// If the file cannot be written, or a row has more or fewer fields than there are columns.
pub(crate) fn table<R: Serialize>(path: &Path, columns: &[&str], rows: &[R]) -> anyhow::Result<()> {
    let told = || format!("cannot write the table {}", path.display());
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(columns).with_context(told)?;
    for row in rows {
        writer.serialize(row).with_context(told)?;
    }
    let text = writer.into_inner().map_err(csv::IntoInnerError::into_error).with_context(told)?;
    output::whole(path, &text).with_context(told)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn written(write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("table.csv");
        write(&path)?;
        Ok(std::fs::read_to_string(&path)?)
    }

    #[test]
    fn the_timeline() {
        let seconds = [
            Second { step: "10,000/s".into(), ..Second::example(1.0, 1200, 800) },
            Second {
                failed: 3,
                seconds: 0.25,
                device_written_bytes: Some(8192),
                user_bytes: Some(4096),
                cpu_seconds: Some(1.5),
                resident_bytes: Some(1 << 20),
                ..Second::example(1.25, 0, 10)
            },
        ];
        expect![[r#"
            at_seconds,seconds,step,operations,failed,reads,writes,read_p50_us,read_p99_us,write_p50_us,write_p99_us,device_written_bytes,user_bytes,cpu_seconds,resident_bytes
            1.0,1.0,"10,000/s",2000,0,1200,800,90.0,700.0,210.0,1900.0,,,,
            1.25,0.25,,10,3,0,10,,,210.0,1900.0,8192,4096,1.5,1048576
        "#]]
        .assert_eq(&written(|path| write(path, &seconds)).unwrap());
    }

    /// The columns are named by hand, so that an empty timeline has them too; the type has the last word.
    #[test]
    fn the_columns_are_the_fields() {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.serialize(Second::example(1.0, 1, 1)).unwrap();
        let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        assert_eq!(text.lines().next().unwrap(), TIMELINE_COLUMNS.join(","));
        assert_eq!(written(|path| write(path, &[])).unwrap(), TIMELINE_COLUMNS.join(",") + "\n");
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        #[derive(Serialize)]
        struct Row {
            target: &'static str,
            wa: Option<f64>,
        }
        let rows = [Row { target: "engine", wa: Some(1.25) }, Row { target: "etcd \"three\"", wa: None }];
        let text = written(|path| table(path, &["target", "wa"], &rows)).unwrap();
        assert_eq!(text, "target,wa\nengine,1.25\n\"etcd \"\"three\"\"\",\n");
        assert!(written(|path| table(path, &["target"], &rows)).is_err());
    }
}
