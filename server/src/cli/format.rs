//! `terrane format`: the only command besides the first run of `local` that creates data.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terrane_ocssd::superblock::{FormatError, FormatOptions, Superblock};
use terrane_ocssd::{DeviceKind, FlashLayout, KindOptions, UnknownKind};

use super::{Exit, Failure, output, told};
use crate::config::{ByteSize, ClusterId, Config};

const EXAMPLES: &str = "\
The whole device is written once, so that later writes go to blocks that exist already: durable
writes into them are twice as fast. A block device is used whole unless --size says less. Of a
device that the host manages (zones, emulated flash) every chunk is reset instead.

Examples:
  terrane format --config node-1.toml --size 64GiB
  terrane format --config node-1.toml --data /dev/nvme0n1
  terrane format --config node-1.toml --data /dev/nvme1n2 --media zoned
  terrane format --config node-1.toml --media flash --size 4GiB
  terrane format --data disk.terrane --cluster 6b1f0a52c8d94e7f93a4d17e5c20b8f6 --node 1 --shards 2 --size 4GiB";

/// Lay out a node's device: superblock and one slice per shard. Everything on it is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Take data, cluster_id, node_id and shards from this configuration
    #[arg(long, value_name = "FILE", required_unless_present_all = ["data", "cluster", "node", "shards"])]
    config: Option<PathBuf>,
    /// The file to create, or the block device to take
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Cluster id, 32 hexadecimal digits
    #[arg(long, value_name = "ID", conflicts_with = "config")]
    cluster: Option<ClusterId>,
    /// Node id
    #[arg(long, value_name = "N", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(1..))]
    node: Option<u32>,
    /// Shards of the node: fixed from now on
    #[arg(long, value_name = "N", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: Option<u32>,
    /// Bytes to lay out, such as 64GiB; required for a file
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteSize>,
    /// Erase unit of the log (default: by the size of a slice, 8 MiB to 64 MiB). A value must fit in one
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<ByteSize>,
    #[command(flatten)]
    kind: Kind,
    /// Format a device or file that holds something already: what it holds is lost
    #[arg(long)]
    force: bool,
}

/// As what a device is laid out.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Kind {
    /// What the device must be, or else is not touched: file (also a block device), zoned, fdp; flash makes a file that
    /// holds emulated Open-Channel flash. auto takes what it finds, and makes a new file a plain one
    #[arg(long, value_name = "auto|file|flash|zoned|fdp", default_value_t = Media(None))]
    media: Media,
    /// Parallel units of each shard of emulated flash
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    flash_units: Option<u32>,
}

impl Kind {
    pub(super) fn options(&self) -> Result<KindOptions, Failure> {
        if self.flash_units.is_some() && self.media.0 != Some(DeviceKind::Flash) {
            return Err(Failure::usage("--flash-units is for --media flash"));
        }
        let default = FlashLayout::default();
        let units = self.flash_units.unwrap_or(default.units);
        Ok(KindOptions { kind: self.media.0, flash: FlashLayout { units, ..default } })
    }
}

/// The kind of device that is insisted on, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Media(Option<DeviceKind>);

impl FromStr for Media {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Media, UnknownKind> {
        if name == "auto" { Ok(Media(None)) } else { name.parse().map(|kind| Media(Some(kind))) }
    }
}

impl fmt::Display for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("auto", DeviceKind::name))
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let kind = args.kind.options()?;
    let (path, cluster, node, shards) = match (&args.config, args.cluster, args.node, args.shards) {
        (Some(config), ..) => {
            let mut config = Config::load(config)?;
            if let Some(data) = &args.data {
                config.data.clone_from(data);
            }
            config.validate()?;
            if let Some(chunk) = args.chunk_size {
                // Said now, not when the node is started on it.
                config.check_chunk(chunk.0)?;
            }
            (config.data, config.cluster_id, config.node_id, config.shards)
        }
        (None, Some(cluster), Some(node), Some(shards)) => match &args.data {
            Some(data) => (data.clone(), cluster, node, shards),
            None => return Err(Failure::usage("--data is missing")),
        },
        _ => return Err(Failure::usage("give --config, or --data, --cluster, --node and --shards")),
    };
    let found = std::fs::metadata(&path).map(|found| found.file_type());
    let device = found.is_ok_and(|found| found.is_block_device() || found.is_char_device());
    if args.size.is_none() && !device {
        return Err(Failure::usage(format!(
            "{} is not a device: say how large the file shall be, as in --size 4GiB",
            path.display()
        )));
    }
    let options = FormatOptions {
        cluster: cluster.0,
        node,
        shards,
        // 0: all of a device.
        size_bytes: args.size.map_or(0, |size| size.0),
        chunk_bytes: args.chunk_size.map(|size| size.0),
        sector_bytes: None,
        force: args.force,
    };
    let superblock = format_device(&path, &options, &kind).map_err(|error| {
        let forcible = matches!(
            error.downcast_ref(),
            Some(FormatError::AlreadyFormatted { .. } | FormatError::NotEmpty { .. })
        );
        Failure::new(Exit::Failure, format!("{}{}", told(&error), if forcible { " (--force)" } else { "" }))
    })?;
    output::print(format!(
        "{}: {}, laid out for node {node} of cluster {cluster}: {shards} slices of {}, chunks of {}\n",
        path.display(),
        superblock.kind,
        ByteSize(superblock.slice_bytes),
        ByteSize(superblock.chunk_bytes),
    ))
}

/// Lays out one device under a progress bar (on a terminal; nothing otherwise).
pub(super) fn format_device(
    path: &Path,
    options: &FormatOptions,
    kind: &KindOptions,
) -> anyhow::Result<Superblock> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(format!("laying out {}", path.display()));
    let formatted = crate::node::format_device(path, options, kind, &mut |written, total| {
        bar.set_length(total);
        bar.set_position(written);
    });
    bar.finish_and_clear();
    formatted
}
