//! Where a measurement was made: processor, memory, kernel, and the device behind the data, as far as Linux
//! tells.
//!
//! A figure means nothing without this. What cannot be known is `None`; nothing here fails, because a report
//! without its machine is still a report. Sources: proc(5), `/proc/self/mountinfo`, os-release(5), and the
//! kernel's `Documentation/ABI/stable/sysfs-block`.
//!
//! Invariant: reports are made to be shown, so no host name, no user name, no serial number is read; a home
//! folder in the command line is written as `$HOME`. (What the user typed otherwise, addresses for example,
//! stays.)

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::stat::{major, minor};
use serde::Serialize;

use crate::report::figures;

/// The machine, the program and the moment of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    /// The processor by the name it gives itself.
    pub(crate) cpu: Option<String>,
    /// Processors this process may use (affinity and control group considered).
    pub(crate) cores: Option<usize>,
    /// Physical memory.
    pub(crate) memory_bytes: Option<u64>,
    /// The kernel's release, such as `6.18.2`.
    pub(crate) kernel: Option<String>,
    /// The distribution with its version.
    pub(crate) distribution: Option<String>,
    /// What the data lies on; `None`: no path was given, or nothing is known of it.
    pub(crate) storage: Option<Storage>,
    /// Load average over the last minute, five and fifteen minutes, before the measurement.
    pub(crate) load_average: Option<[f64; 3]>,
    /// Version of the load generator.
    pub(crate) version: &'static str,
    /// When, in UTC (RFC 3339, whole seconds).
    pub(crate) at: String,
    /// The command line, quoted for a shell.
    pub(crate) command: String,
}

/// A file system and the block device beneath it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Storage {
    /// Type of the file system, such as `ext4`; `None` for a raw block device.
    pub(crate) file_system: Option<String>,
    /// The device's name in the kernel, such as `nvme0n1`: the whole disk, not the partition.
    pub(crate) device: Option<String>,
    /// What the device calls itself.
    pub(crate) model: Option<String>,
    /// Whether it says that it turns.
    pub(crate) rotational: Option<bool>,
    /// Size of the whole disk.
    pub(crate) size_bytes: Option<u64>,
    /// How the kernel believes it caches writes: `write back` (needs flushes) or `write through`.
    pub(crate) write_cache: Option<String>,
}

impl Machine {
    /// This machine, now, with the storage that holds `path` (which need not exist yet).
    pub(crate) fn of(path: Option<&Path>) -> Machine {
        let home = std::env::var("HOME").ok();
        Machine {
            cpu: text("/proc/cpuinfo").and_then(|text| field(&text, "model name")),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: text("/proc/meminfo").and_then(|text| kib(&field(&text, "MemTotal")?)),
            kernel: line("/proc/sys/kernel/osrelease"),
            distribution: text("/etc/os-release").and_then(|text| distribution(&text)),
            storage: path.and_then(storage),
            load_average: text("/proc/loadavg").and_then(|text| load_average(&text)),
            version: env!("CARGO_PKG_VERSION"),
            at: utc(SystemTime::now()),
            command: command(
                std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()),
                home.as_deref(),
            ),
        }
    }

    /// The machine in pairs of name and value, as a report shows it; what is not known is left out.
    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let cpu = match (&self.cpu, self.cores) {
            (Some(cpu), Some(cores)) => Some(format!("{cpu}, {}", counted(cores, "core"))),
            (Some(cpu), None) => Some(cpu.clone()),
            (None, cores) => cores.map(|cores| counted(cores, "core")),
        };
        let system = match (&self.kernel, &self.distribution) {
            (Some(kernel), Some(distribution)) => Some(format!("{kernel}, {distribution}")),
            (kernel, distribution) => kernel.as_ref().or(distribution.as_ref()).cloned(),
        };
        let load = self.load_average.map(|[one, five, fifteen]| format!("{one:.2}, {five:.2}, {fifteen:.2}"));
        [
            ("Processor", cpu),
            ("Memory", self.memory_bytes.map(figures::bytes)),
            ("Kernel", system),
            ("Device", self.storage.as_ref().and_then(Storage::words)),
            ("Load average before", load),
            ("Load generator", Some(format!("terrane-loadgen {}", self.version))),
            ("Date", Some(self.at.clone())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
    }
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

impl Storage {
    /// In one line: ext4 on nvme0n1 (Samsung SSD 990 PRO, 1.8 TiB, flash, write back).
    fn words(&self) -> Option<String> {
        let inner: Vec<String> = [
            self.model.clone(),
            self.size_bytes.map(figures::bytes),
            self.rotational.map(|rotational| {
                if rotational { "said to be rotational" } else { "not rotational" }.to_owned()
            }),
            self.write_cache.as_ref().map(|cache| format!("cache: {cache}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut words = match (&self.file_system, &self.device) {
            (Some(file_system), Some(device)) => format!("{file_system} on {device}"),
            (file_system, device) => file_system.clone().or_else(|| device.clone())?,
        };
        if !inner.is_empty() {
            words.push_str(&format!(" ({})", inner.join(", ")));
        }
        Some(words)
    }
}

/// What holds `path`: the nearest part of it that exists.
fn storage(path: &Path) -> Option<Storage> {
    let path = std::path::absolute(path).ok()?;
    let existing = path.ancestors().find_map(|part| part.canonicalize().ok())?;
    let meta = fs::metadata(&existing).ok()?;
    let (file_system, number) = if meta.file_type().is_block_device() {
        (None, Some(meta.rdev()))
    } else {
        let mount = text("/proc/self/mountinfo").and_then(|text| mount_of(&text, &existing));
        // Some file systems (btrfs, overlayfs) answer stat(2) with a number that is no device's: ask what was
        // mounted.
        let source = mount.as_ref().and_then(|mount| fs::metadata(&mount.source).ok());
        let source = source.filter(|meta| meta.file_type().is_block_device()).map(|meta| meta.rdev());
        (mount.map(|mount| mount.file_system), if major(meta.dev()) == 0 { source } else { Some(meta.dev()) })
    };
    let device = number.and_then(|number| {
        let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        fs::canonicalize(link).ok()
    });
    let mut storage = device.map(|folder| device_at(&folder)).unwrap_or_default();
    storage.file_system = file_system;
    (storage != Storage::default()).then_some(storage)
}

/// Reads a block device's folder in sysfs; a partition's disk is the folder above it.
fn device_at(folder: &Path) -> Storage {
    let disk = match folder.parent() {
        Some(parent) if folder.join("partition").exists() => parent,
        _ => folder,
    };
    let line = |name: &str| line(disk.join(name));
    Storage {
        file_system: None,
        device: disk.file_name().map(|name| name.to_string_lossy().into_owned()),
        model: line("device/model").or_else(|| line("dm/name")),
        rotational: line("queue/rotational").and_then(|digit| match digit.as_str() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }),
        // In units of 512 bytes, whatever the device's sectors are.
        size_bytes: line("size").and_then(|sectors| sectors.parse::<u64>().ok()?.checked_mul(512)),
        write_cache: line("queue/write_cache"),
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    file_system: String,
    source: PathBuf,
}

/// The mount that an absolute, canonical path lies in: the longest mount point that begins it, the last one
/// mounted if there are several.
fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        // 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
        let (place, what) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(place.split(' ').nth(4)?));
        let mut what = what.split(' ');
        let mount =
            Mount { file_system: unescaped(what.next()?), source: PathBuf::from(unescaped(what.next()?)) };
        path.starts_with(&point).then(|| (point.as_os_str().as_bytes().len(), mount))
    });
    Some(mounts.max_by_key(|(length, _)| *length)?.1)
}

/// Undoes the kernel's escapes of space, tab, line break and backslash in mountinfo.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, is)| text.replace(escape, is))
}

/// The value of `name` in lines of `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn distribution(os_release: &str) -> Option<String> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    // The value is quoted for a shell.
    shlex::split(name)?.into_iter().next()
}

fn load_average(text: &str) -> Option<[f64; 3]> {
    let mut loads = text.split_ascii_whitespace().map_while(|load| load.parse().ok());
    Some([loads.next()?, loads.next()?, loads.next()?])
}

/// Whole seconds, UTC, RFC 3339. A clock that was never set may stand before 1970: that is shown as its
/// beginning.
fn utc(time: SystemTime) -> String {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since_1970).to_string()
}

/// A command line that a shell reads back as the same arguments. The program is named without its folder.
fn command(args: impl Iterator<Item = String>, home: Option<&str>) -> String {
    let home = home.map(|home| home.trim_end_matches('/')).filter(|home| home.len() > 1);
    let mut words = Vec::new();
    for (place, arg) in args.enumerate() {
        words.push(match Path::new(&arg).file_name() {
            Some(name) if place == 0 => quoted(&name.to_string_lossy()),
            _ => without_home(&arg, home),
        });
    }
    words.join(" ")
}

/// Quotes an argument, with `"$HOME"` for a home folder at its beginning; of `--name=value`, the value.
fn without_home(arg: &str, home: Option<&str>) -> String {
    let option = arg.find('=').map(|at| arg.split_at(at + 1)).filter(|(name, _)| {
        name.starts_with("--")
            && name[..name.len() - 1].bytes().all(|c| c == b'-' || c.is_ascii_alphanumeric())
    });
    let (name, value) = option.unwrap_or(("", arg));
    let rest = home.and_then(|home| value.strip_prefix(home));
    let value = match rest {
        Some("") => "\"$HOME\"".to_owned(),
        Some(rest) if rest.starts_with('/') => format!("\"$HOME\"{}", quoted(rest)),
        _ => quoted(value),
    };
    format!("{name}{value}")
}

/// An argument as a shell takes it. (No argument holds a zero byte, the one thing that cannot be quoted.)
fn quoted(arg: &str) -> String {
    shlex::try_quote(arg).map_or_else(|_| arg.replace('\0', ""), |quoted| quoted.into_owned())
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The one line of a file of the kernel's.
fn line(path: impl AsRef<Path>) -> Option<String> {
    text(path).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn this_machine_tells_something() {
        let machine = Machine::of(Some(&std::env::temp_dir().join("not/yet/there")));
        assert!(machine.cores.unwrap() >= 1);
        assert!(machine.memory_bytes.unwrap() > 1 << 20);
        assert!(machine.kernel.is_some() && machine.load_average.is_some());
        assert!(machine.storage.clone().unwrap().file_system.is_some());
        let facts = machine.facts();
        for name in ["Memory", "Kernel", "Device", "Date"] {
            assert!(facts.iter().any(|(fact, value)| fact == name && !value.is_empty()), "{name}: {facts:?}");
        }
    }

    #[test]
    fn files_of_the_kernel() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Example CPU @ 3.0GHz\nmodel name\t: other\n";
        assert_eq!(field(cpuinfo, "model name").unwrap(), "Example CPU @ 3.0GHz");
        assert_eq!(field("processor : 0\n", "model name"), None);
        assert_eq!(kib("24684084 kB"), Some(24684084 * 1024));
        assert_eq!(kib("many kB"), None);
        assert_eq!(
            distribution("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(distribution("NAME=x\n"), None);
        assert_eq!(load_average("0.50 1.25 2.00 3/115 321\n"), Some([0.5, 1.25, 2.0]));
        assert_eq!(load_average("nonsense"), None);
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(951_827_696_700);
        assert_eq!(utc(at), "2000-02-29T12:34:56Z");
        assert_eq!(utc(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn the_longest_mount_point_holds_a_path() {
        let mountinfo = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda1 rw
30 27 259:1 / /data rw shared:1 - xfs /dev/nvme0n1p1 rw
31 27 0:44 /@sub /data/two\\040words rw - btrfs /dev/sdb rw
garbage
";
        let at = |path: &str| mount_of(mountinfo, Path::new(path)).map(|mount| mount.file_system);
        assert_eq!(at("/home/x").unwrap(), "ext4");
        assert_eq!(at("/data/store").unwrap(), "xfs");
        assert_eq!(at("/database").unwrap(), "ext4");
        let mount = mount_of(mountinfo, Path::new("/data/two words/x")).unwrap();
        assert_eq!(mount, Mount { file_system: "btrfs".into(), source: "/dev/sdb".into() });
        assert_eq!(mount_of("", Path::new("/")), None);
    }

    #[test]
    fn a_partition_is_described_by_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("nvme0n1");
        let partition = disk.join("nvme0n1p2");
        for made in [&partition, &disk.join("queue"), &disk.join("device")] {
            fs::create_dir_all(made).unwrap();
        }
        for (name, content) in [
            ("size", "2000409264\n"),
            ("queue/rotational", "0\n"),
            ("queue/write_cache", "write back\n"),
            ("device/model", "Example SSD 1TB                  \n"),
            ("nvme0n1p2/partition", "2\n"),
            ("nvme0n1p2/size", "2048\n"),
        ] {
            fs::write(disk.join(name), content).unwrap();
        }
        let found = device_at(&partition);
        let expected = Storage {
            file_system: None,
            device: Some("nvme0n1".into()),
            model: Some("Example SSD 1TB".into()),
            rotational: Some(false),
            size_bytes: Some(2000409264 * 512),
            write_cache: Some("write back".into()),
        };
        assert_eq!(found, expected);
        assert_eq!(device_at(&disk), expected);
        let on = Storage { file_system: Some("ext4".into()), ..found };
        assert_eq!(
            on.words().unwrap(),
            "ext4 on nvme0n1 (Example SSD 1TB, 954 GiB, not rotational, cache: write back)"
        );
        let bare = device_at(&folder.path().join("none"));
        assert_eq!(bare, Storage { device: Some("none".into()), ..Storage::default() });
    }

    #[test]
    fn a_command_can_be_typed_again() {
        let of = |args: &[&str]| command(args.iter().map(|arg| (*arg).to_owned()), Some("/home/someone/"));
        assert_eq!(of(&["./target/release/terrane-loadgen", "run"]), "terrane-loadgen run");
        let text = of(&["x", "--name=it's", "two words", "", "$x"]);
        assert_eq!(shlex::split(&text).unwrap(), ["x", "--name=it's", "two words", "", "$x"]);
        assert_eq!(
            of(&[
                "x",
                "/home/someone/data",
                "--json=/home/someone/my file",
                "/home/someone",
                "/home/someoneelse"
            ]),
            "x \"$HOME\"/data --json=\"$HOME\"'/my file' \"$HOME\" /home/someoneelse"
        );
        assert_eq!(command(["x".into(), "/data".into()].into_iter(), Some("/")), "x /data");
    }
}
