//! What stands at a path, by the word of the operating system, before anything of it is read as ours.
//!
//! ```text
//! regular file                          conventional, or emulated flash if its header says so
//! block device, queue/zoned = none      conventional
//! block device, queue/zoned = host-*    zoned (a whole disk only)
//! character device ngXnY                zoned or FDP, as the namespace identifies itself
//! ```
//!
//! Invariants:
//! - What the user insists on is compared with what was found and never believed instead of it.
//! - A site's path has no symbolic link in it: whatever is locked, checked, removed or written later is what was looked at.
//! - Nothing is opened for writing here.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::device::error::OpenError;
use crate::device::kind::DeviceKind;
use crate::fdp::FdpDevice;
use crate::flash::FlashDevice;
use crate::nvme::NamespaceError;
use crate::nvme::identify::CommandSet;
use crate::nvme::namespace::Passthrough;
use crate::probe::Kind;

/// Why a path is not used as a device at all, or not as the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The user's word and the device's contradict each other.
    #[error("{} is {found}, not {asked}: {}", .path.display(), contradiction(*.asked, *.found))]
    WrongKind {
        /// The device.
        path: PathBuf,
        /// What the user said.
        asked: DeviceKind,
        /// What it is.
        found: DeviceKind,
    },
    /// Nothing can be written to it.
    #[error("{} is read-only: {advice}", .path.display())]
    ReadOnly {
        /// The file or device.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// A part of a zoned disk, whose zones would be shared with what lies beside it.
    #[error(
        "{} is a partition of the zoned disk {disk}: give the whole disk, whose limit of open zones and whose \
         zone numbers the host must have to itself",
        .path.display()
    )]
    ZonedPartition {
        /// The partition.
        path: PathBuf,
        /// The disk's name.
        disk: String,
    },
    /// A file system on it is mounted.
    #[error(
        "{} is mounted at {}: unmount it first, if what it holds may be lost",
        .path.display(), .at.display()
    )]
    Mounted {
        /// The device.
        path: PathBuf,
        /// Where it, or a partition of it, is mounted.
        at: PathBuf,
    },
    /// Another block device is built on it.
    #[error("{} is in use: {by} is built on it", .path.display())]
    Held {
        /// The device.
        path: PathBuf,
        /// The device above it.
        by: String,
    },
    /// A character device that is something else.
    #[error("{} is a character device, but none of an NVMe namespace (/dev/ngXnY)", .path.display())]
    NotNvme {
        /// The device.
        path: PathBuf,
    },
    /// A symbolic link, and nothing is where it leads.
    #[error(
        "{} is a symbolic link to {}, where nothing is: give that path itself to make the file there, or remove the link",
        .path.display(), .target.display()
    )]
    LinkToNothing {
        /// The link.
        path: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// A namespace that has neither zones nor placement handles.
    #[error(
        "{} is a namespace without zones and without placement handles: give its block device, {}",
        .path.display(), .block.display()
    )]
    PlainNamespace {
        /// The character device.
        path: PathBuf,
        /// The block device of the same namespace.
        block: PathBuf,
    },
}

/// Why nothing is said of a path.
#[derive(Debug)]
pub(crate) enum LookError {
    Refused(Refusal),
    Namespace(NamespaceError),
    /// The operating system failed a step.
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl From<Refusal> for LookError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Why the one cannot be had as the other, and what to do.
fn contradiction(asked: DeviceKind, found: DeviceKind) -> &'static str {
    match (asked, found) {
        (DeviceKind::Conventional, DeviceKind::Zoned) => {
            "zones cannot be overwritten in place; lay it out as zoned, or take another device"
        }
        (DeviceKind::Conventional, DeviceKind::Flash) => {
            "its header says so; lay it out as flash, or remove the file first"
        }
        (DeviceKind::Conventional, DeviceKind::Fdp) => {
            "give its block device (/dev/nvmeXnY) to use it without placement handles"
        }
        (DeviceKind::Zoned, _) => "it has no zones; leave the kind out to take it as what it is",
        (DeviceKind::Fdp, _) => {
            "placement handles are reached through the character device (/dev/ngXnY) of a namespace that has them"
        }
        (DeviceKind::Flash, _) => "flash is emulated in a regular file",
        (DeviceKind::Conventional, DeviceKind::Conventional) => unreachable!("they are the same"),
    }
}

fn has_flash_header(path: &Path) -> Result<bool, LookError> {
    let error = |source| LookError::Io { step: "read", path: path.to_path_buf(), source };
    FlashDevice::is_in_file(path).map_err(error)
}

/// Asks a namespace by passthrough, which takes and gives back its lock.
fn identify(path: &Path) -> Result<Namespace, LookError> {
    let refused = |error| match Site::look(&Host::default(), path) {
        Ok(Some(site)) => site.refused(error),
        _ => LookError::Namespace(error),
    };
    let command_set = Passthrough::open(path).map_err(refused)?.command_set;
    if command_set == CommandSet::Zoned {
        return Ok(Namespace::Zoned);
    }
    match FdpDevice::open(path) {
        Ok(_) => Ok(Namespace::Fdp),
        Err(NamespaceError::NoPlacement { .. }) => Ok(Namespace::Plain),
        Err(error) => Err(refused(error)),
    }
}

/// Where the kernel's own files are: another place in tests.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// How a character device's namespace identifies itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// The zoned command set.
    Zoned,
    /// Placement handles.
    Fdp,
    /// Neither.
    Plain,
}

/// What a path was found to be.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    path: PathBuf,
    node: Kind,
    device: (u64, u64),
    writable: bool,
    host: Host,
}

/// A block device, as sysfs describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    name: String,
    zoned: bool,
    read_only: bool,
    /// The disk's name, if it is a partition.
    disk: Option<String>,
}

impl Site {
    /// `None`: it can hold no device (a folder, a pipe).
    pub(crate) fn look(host: &Host, path: &Path) -> io::Result<Option<Self>> {
        let path = path.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        Ok(Self::of(host, &path, &metadata))
    }

    fn of(host: &Host, path: &Path, metadata: &Metadata) -> Option<Self> {
        let node = Kind::of(metadata)?;
        let number = metadata.rdev();
        Some(Self {
            path: path.to_path_buf(),
            node,
            device: (libc::major(number).into(), libc::minor(number).into()),
            // Also where the superuser may write all the same: whoever took the permission away meant it.
            writable: node != Kind::RegularFile || !metadata.permissions().readonly(),
            host: host.clone(),
        })
    }

    /// As [`Self::look`], of a path that must be there.
    pub(crate) fn to_open(host: &Host, path: &Path) -> Result<Self, OpenError> {
        let path = || path.to_path_buf();
        match Self::look(host, &path()) {
            Ok(Some(site)) => Ok(site),
            Ok(None) => Err(OpenError::NotADevice { path: path() }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(OpenError::Missing { path: path() })
            }
            Err(source) => Err(OpenError::Io { step: "look at", path: path(), source }),
        }
    }

    pub(crate) fn node(&self) -> Kind {
        self.node
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of device, if it can be written and is what was asked for.
    pub(crate) fn kind(&self, asked: Option<DeviceKind>) -> Result<DeviceKind, LookError> {
        self.kind_by(asked, has_flash_header, identify)
    }

    /// As [`Self::kind`], without a command to a namespace, which would need its lock: sysfs says whether it has zones,
    /// and of one without, only placement handles are a reason to be here.
    pub(crate) fn kind_without_lock(&self) -> Result<DeviceKind, LookError> {
        let zoned = self.block().is_some_and(|block| block.zoned);
        let namespace = if zoned { Namespace::Zoned } else { Namespace::Fdp };
        self.kind_by(None, has_flash_header, |_| Ok(namespace))
    }

    /// As [`Self::kind`], where what a file holds does not count: it can be laid out as either kind of file.
    pub(crate) fn kind_to_lay_out(&self, asked: Option<DeviceKind>) -> Result<DeviceKind, LookError> {
        match (self.node, asked) {
            (Kind::RegularFile, Some(DeviceKind::Flash)) => {
                self.kind_by(None, |_| Ok(true), |_| unreachable!("a file"))
            }
            _ => self.kind(asked),
        }
    }

    /// As [`Self::kind`]. `flash` says whether a regular file has the header of emulated flash, `identify` what a
    /// namespace is; each is asked only of a path that can be such.
    fn kind_by<E: From<Refusal>>(
        &self,
        asked: Option<DeviceKind>,
        flash: impl FnOnce(&Path) -> Result<bool, E>,
        identify: impl FnOnce(&Path) -> Result<Namespace, E>,
    ) -> Result<DeviceKind, E> {
        let found = match self.node {
            Kind::RegularFile if flash(&self.path)? => DeviceKind::Flash,
            Kind::RegularFile => DeviceKind::Conventional,
            Kind::BlockDevice => self.block_kind()?,
            Kind::CharacterDevice => {
                let block =
                    self.namespace_block().ok_or_else(|| Refusal::NotNvme { path: self.path.clone() })?;
                match identify(&self.path)? {
                    Namespace::Zoned => DeviceKind::Zoned,
                    Namespace::Fdp => DeviceKind::Fdp,
                    Namespace::Plain => {
                        let block = Path::new("/dev").join(block);
                        return Err(Refusal::PlainNamespace { path: self.path.clone(), block }.into());
                    }
                }
            }
        };
        self.agree(asked, found)?;
        // Of a block device sysfs has said it.
        if !self.writable {
            let advice = "nobody may write to the file; allow it (chmod u+w) if it is to be used";
            return Err(Refusal::ReadOnly { path: self.path.clone(), advice }.into());
        }
        Ok(found)
    }

    /// Whether `asked` names what is there.
    pub(crate) fn agree(&self, asked: Option<DeviceKind>, found: DeviceKind) -> Result<(), Refusal> {
        match asked {
            Some(asked) if asked != found => {
                Err(Refusal::WrongKind { path: self.path.clone(), asked, found })
            }
            _ => Ok(()),
        }
    }

    /// What a failure to open it for writing means, if it means that this cannot be done.
    pub(crate) fn not_writable(&self, error: &io::Error) -> Option<Refusal> {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "this user may not write to it",
            io::ErrorKind::ReadOnlyFilesystem => {
                "it is on a file system that is mounted read-only, or write-protected"
            }
            _ => return None,
        };
        Some(Refusal::ReadOnly { path: self.path.clone(), advice })
    }

    fn block_kind(&self) -> Result<DeviceKind, Refusal> {
        let path = || self.path.clone();
        let Some(block) = self.block() else { return Ok(DeviceKind::Conventional) };
        if block.read_only {
            let advice = "its switch, a namespace's write protection or `blockdev --setro` says so";
            return Err(Refusal::ReadOnly { path: path(), advice });
        }
        match (block.zoned, block.disk) {
            (true, Some(disk)) => Err(Refusal::ZonedPartition { path: path(), disk }),
            (true, None) => Ok(DeviceKind::Zoned),
            (false, _) => Ok(DeviceKind::Conventional),
        }
    }

    /// What keeps others from the device, as far as the kernel tells: asked after it refused exclusive use.
    pub(crate) fn holder(&self) -> Option<Refusal> {
        let folder = self.block_folder()?;
        let parts: Vec<PathBuf> = [folder.clone()].into_iter().chain(partitions(&folder)).collect();
        let numbers: BTreeSet<String> = parts.iter().filter_map(|part| said(&part.join("dev"))).collect();
        let names: BTreeSet<String> = parts.iter().filter_map(|part| name_of(part)).collect();
        let mounts = fs::read_to_string(self.host.proc.join("self/mountinfo")).unwrap_or_default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            let source = Path::new(&mount.source).strip_prefix("/dev").ok().and_then(Path::to_str);
            if numbers.contains(mount.device) || source.is_some_and(|name| names.contains(name)) {
                return Some(Refusal::Mounted { path: self.path.clone(), at: mount.at });
            }
        }
        let holders = parts.iter().filter_map(|part| fs::read_dir(part.join("holders")).ok());
        let by = holders.flatten().flatten().next()?.file_name().to_string_lossy().into_owned();
        Some(Refusal::Held { path: self.path.clone(), by })
    }

    /// Why a namespace is not used, with the name of who holds its block device if that is why.
    fn refused(&self, error: NamespaceError) -> LookError {
        let holder = match error {
            NamespaceError::InUse { .. } => self.holder(),
            _ => None,
        };
        holder.map_or(LookError::Namespace(error), LookError::Refused)
    }

    /// `None`: sysfs does not know it.
    fn block(&self) -> Option<Block> {
        let folder = self.block_folder()?;
        let is_partition = folder.join("partition").exists();
        let disk = if is_partition { folder.parent()?.to_path_buf() } else { folder.clone() };
        let zoned = said(&disk.join("queue/zoned")).is_some_and(|model| model.starts_with("host-"));
        Some(Block {
            name: name_of(&folder)?,
            zoned,
            read_only: said(&folder.join("ro")).as_deref() == Some("1"),
            disk: is_partition.then(|| name_of(&disk)).flatten(),
        })
    }

    fn folder(&self, class: &str) -> Option<PathBuf> {
        let (major, minor) = self.device;
        self.host.sys.join(format!("dev/{class}/{major}:{minor}")).canonicalize().ok()
    }

    fn block_folder(&self) -> Option<PathBuf> {
        match self.node {
            Kind::RegularFile => None,
            Kind::BlockDevice => self.folder("block"),
            Kind::CharacterDevice => {
                self.host.sys.join("class/block").join(self.namespace_block()?).canonicalize().ok()
            }
        }
    }

    /// Name of the block device of the namespace that a character device belongs to: they are numbered alike.
    pub(crate) fn namespace_block(&self) -> Option<String> {
        let name = name_of(&self.folder("char")?)?;
        let numbers = name.strip_prefix("ng")?;
        let (controller, namespace) = numbers.split_once('n')?;
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (number(controller) && number(namespace)).then(|| format!("nvme{numbers}"))
    }
}

/// One line of `/proc/self/mountinfo` (proc(5)).
struct Mount<'a> {
    device: &'a str,
    at: PathBuf,
    source: String,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (place, rest) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let device = place.next()?;
        let at = unescape(place.nth(1)?);
        let source = unescape(rest.split(' ').nth(1)?);
        Some(Self { device, at: at.into(), source })
    }
}

/// Blanks and the like are written as three octal digits behind a backslash.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let octal = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        (plain, rest) = match octal {
            Some(byte) => (plain + &char::from(byte).to_string(), &after[3..]),
            None => (plain + "\\", after),
        };
    }
    plain + rest
}

/// A file of the kernel with one word in it.
fn said(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn name_of(folder: &Path) -> Option<String> {
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

fn partitions(disk: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(disk).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|folder| folder.join("partition").exists()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A kernel with one disk `nvme0n1` (259:0) that has one partition (259:1), and the character device of the same
    /// namespace (240:0).
    struct Fake {
        root: tempfile::TempDir,
    }

    impl Fake {
        fn new() -> Self {
            let fake = Self { root: tempfile::tempdir().unwrap() };
            let disk = "sys/devices/nvme0/nvme0n1";
            fake.write(&format!("{disk}/dev"), "259:0\n");
            fake.write(&format!("{disk}/ro"), "0\n");
            fake.write(&format!("{disk}/queue/zoned"), "none\n");
            fake.write(&format!("{disk}/nvme0n1p1/dev"), "259:1\n");
            fake.write(&format!("{disk}/nvme0n1p1/ro"), "0\n");
            fake.write(&format!("{disk}/nvme0n1p1/partition"), "1\n");
            fake.write("sys/devices/nvme0/ng0n1/dev", "240:0\n");
            fake.write("proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n");
            for (link, target) in [
                ("sys/dev/block/259:0", disk),
                ("sys/dev/block/259:1", "sys/devices/nvme0/nvme0n1/nvme0n1p1"),
                ("sys/dev/char/240:0", "sys/devices/nvme0/ng0n1"),
                ("sys/class/block/nvme0n1", disk),
            ] {
                let link = fake.root.path().join(link);
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                symlink(fake.root.path().join(target), link).unwrap();
            }
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn zoned(self, model: &str) -> Self {
            self.write("sys/devices/nvme0/nvme0n1/queue/zoned", model);
            self
        }

        fn host(&self) -> Host {
            Host { sys: self.root.path().join("sys"), proc: self.root.path().join("proc") }
        }

        fn site(&self, node: Kind, device: (u64, u64)) -> Site {
            Site { path: "/dev/x".into(), node, device, writable: true, host: self.host() }
        }

        fn disk(&self) -> Site {
            self.site(Kind::BlockDevice, (259, 0))
        }

        fn partition(&self) -> Site {
            self.site(Kind::BlockDevice, (259, 1))
        }

        fn generic(&self) -> Site {
            self.site(Kind::CharacterDevice, (240, 0))
        }
    }

    /// As a path that is neither flash nor a namespace.
    fn kind(site: &Site, asked: Option<DeviceKind>) -> Result<DeviceKind, Refusal> {
        site.kind_by(asked, |_| Ok(false), |path| panic!("{} was identified", path.display()))
    }

    fn namespace(site: &Site, is: Namespace, asked: Option<DeviceKind>) -> Result<DeviceKind, Refusal> {
        site.kind_by(asked, |path| panic!("{} was read", path.display()), |_| Ok(is))
    }

    #[test]
    fn block_devices_are_what_sysfs_says() {
        for (model, is) in [
            ("none\n", DeviceKind::Conventional),
            ("host-managed\n", DeviceKind::Zoned),
            ("host-aware\n", DeviceKind::Zoned),
        ] {
            let fake = Fake::new().zoned(model);
            assert_eq!(kind(&fake.disk(), None), Ok(is), "{model}");
            assert_eq!(kind(&fake.disk(), Some(is)), Ok(is), "{model}");
        }
        // An old kernel has no such file, and sysfs may not be there at all.
        assert_eq!(kind(&Fake::new().site(Kind::BlockDevice, (8, 0)), None), Ok(DeviceKind::Conventional));
    }

    #[test]
    fn a_zoned_device_is_not_conventional_and_the_reverse() {
        let fake = Fake::new();
        let refused = kind(&fake.disk(), Some(DeviceKind::Zoned)).unwrap_err();
        assert!(
            refused.to_string().contains("is a conventional device, not a zoned device: it has no zones")
        );
        let fake = fake.zoned("host-managed");
        let refused = kind(&fake.disk(), Some(DeviceKind::Conventional)).unwrap_err();
        assert!(refused.to_string().contains("zones cannot be overwritten in place"), "{refused}");
    }

    #[test]
    fn every_contradiction_is_refused_with_a_reason() {
        let fake = Fake::new();
        for found in DeviceKind::ALL {
            for asked in DeviceKind::ALL {
                let agreed = fake.disk().agree(Some(asked), found);
                assert_eq!(agreed.is_ok(), asked == found, "{asked} as {found}");
                let Err(refused) = agreed else { continue };
                let text = refused.to_string();
                assert!(text.contains(&found.to_string()) && text.contains(&asked.to_string()), "{text}");
            }
        }
        assert_eq!(fake.disk().agree(None, DeviceKind::Fdp), Ok(()));
    }

    #[test]
    fn a_file_is_flash_if_its_header_says_so() {
        let fake = Fake::new();
        let file = fake.site(Kind::RegularFile, (0, 0));
        let with_header = |asked| file.kind_by::<Refusal>(asked, |_| Ok(true), |_| unreachable!());
        assert_eq!(with_header(None), Ok(DeviceKind::Flash));
        assert!(matches!(with_header(Some(DeviceKind::Conventional)), Err(Refusal::WrongKind { .. })));
        assert_eq!(kind(&file, None), Ok(DeviceKind::Conventional));
        assert!(matches!(kind(&file, Some(DeviceKind::Flash)), Err(Refusal::WrongKind { .. })));
    }

    #[test]
    fn a_partition_is_taken_of_a_conventional_disk_only() {
        let fake = Fake::new();
        assert_eq!(kind(&fake.partition(), None), Ok(DeviceKind::Conventional));
        let refused = kind(&fake.zoned("host-managed").partition(), None).unwrap_err();
        let Refusal::ZonedPartition { disk, .. } = &refused else { panic!("{refused}") };
        assert_eq!(disk, "nvme0n1");
    }

    #[test]
    fn what_is_read_only_is_refused() {
        let fake = Fake::new();
        fake.write("sys/devices/nvme0/nvme0n1/ro", "1\n");
        assert!(matches!(kind(&fake.disk(), None), Err(Refusal::ReadOnly { .. })));
        assert_eq!(kind(&fake.partition(), None), Ok(DeviceKind::Conventional), "it has a switch of its own");
        let file = Site { writable: false, ..fake.site(Kind::RegularFile, (0, 0)) };
        assert!(matches!(kind(&file, None), Err(Refusal::ReadOnly { .. })));
    }

    #[test]
    fn a_namespace_is_what_it_identifies_itself_as() {
        let site = Fake::new();
        let site = site.generic();
        assert_eq!(namespace(&site, Namespace::Zoned, None), Ok(DeviceKind::Zoned));
        assert_eq!(namespace(&site, Namespace::Fdp, Some(DeviceKind::Fdp)), Ok(DeviceKind::Fdp));
        let asked = Some(DeviceKind::Zoned);
        assert!(matches!(namespace(&site, Namespace::Fdp, asked), Err(Refusal::WrongKind { .. })));
        let refused = namespace(&site, Namespace::Plain, None).unwrap_err();
        assert!(refused.to_string().contains("/dev/nvme0n1"), "{refused}");
    }

    #[test]
    fn other_character_devices_are_refused() {
        let fake = Fake::new();
        assert!(matches!(
            kind(&fake.site(Kind::CharacterDevice, (1, 3)), None),
            Err(Refusal::NotNvme { .. })
        ));
        for name in ["ng0", "ngn1", "ng0n", "ngxn1", "nvme0", "null"] {
            let folder = fake.root.path().join("sys/devices").join(name);
            fs::create_dir_all(&folder).unwrap();
            let link = fake.root.path().join("sys/dev/char/1:3");
            let _ = fs::remove_file(&link);
            symlink(&folder, &link).unwrap();
            let site = fake.site(Kind::CharacterDevice, (1, 3));
            assert!(matches!(kind(&site, None), Err(Refusal::NotNvme { .. })), "{name}");
        }
    }

    #[test]
    fn who_holds_a_device_is_named() {
        let fake = Fake::new();
        assert_eq!(fake.disk().holder(), None);
        fs::create_dir_all(fake.root.path().join("sys/devices/nvme0/nvme0n1/holders/dm-3")).unwrap();
        let held = Refusal::Held { path: "/dev/x".into(), by: "dm-3".into() };
        assert_eq!(fake.disk().holder(), Some(held.clone()));
        assert_eq!(fake.generic().holder(), Some(held), "the same namespace");
        // A mount says more. It is one of the disk, whichever partition it is.
        for line in [
            "40 27 259:1 / /mnt/my\\040data rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n",
            // Some file systems have numbers of their own.
            "41 27 0:44 /@ /mnt/my\\040data rw - btrfs /dev/nvme0n1p1 rw\n",
        ] {
            fake.write("proc/self/mountinfo", &format!("22 27 0:21 / /proc rw - proc proc rw\n{line}"));
            let at = PathBuf::from("/mnt/my data");
            let mounted = Some(Refusal::Mounted { path: "/dev/x".into(), at });
            assert_eq!(fake.disk().holder(), mounted);
            assert_eq!(fake.partition().holder(), mounted);
            assert_eq!(fake.generic().holder(), mounted);
        }
        assert_eq!(fake.site(Kind::RegularFile, (259, 0)).holder(), None);
    }

    /// "In use by another process" would send the user to look for a process.
    #[test]
    fn who_holds_the_block_device_of_a_namespace_is_named() {
        let fake = Fake::new();
        let in_use = || NamespaceError::InUse { path: "/dev/x".into() };
        let refused = |error| fake.generic().refused(error);
        assert!(matches!(refused(in_use()), LookError::Namespace(NamespaceError::InUse { .. })));
        let line = "40 27 259:1 / /mnt rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n";
        fake.write("proc/self/mountinfo", line);
        assert!(matches!(refused(in_use()), LookError::Refused(Refusal::Mounted { .. })));
        let other = NamespaceError::NotZoned { path: "/dev/x".into() };
        assert!(matches!(refused(other), LookError::Namespace(NamespaceError::NotZoned { .. })));
    }

    #[test]
    fn paths_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"x").unwrap();
        let host = Host::default();
        let look = |path: &Path| Site::look(&host, path).unwrap();
        assert_eq!(kind(&look(&path).unwrap(), None), Ok(DeviceKind::Conventional));
        assert!(look(folder.path()).is_none());
        let null = look(Path::new("/dev/null")).unwrap();
        assert!(matches!(kind(&null, None), Err(Refusal::NotNvme { .. })));
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        assert!(matches!(kind(&look(&path).unwrap(), None), Err(Refusal::ReadOnly { .. })));
    }
}
