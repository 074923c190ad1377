//! What is measured, and in which order: every cell of the table, each repetition of it going once around all targets,
//! beginning with another one each time, so that none always follows the same.

use crate::cli::compare::{CompareArgs, Contestant};
use crate::cli::target::{Config, Mode, NotCompiledIn, TargetName};

/// What the targets of one comparison have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) config: Config,
    pub(crate) mode: Mode,
    pub(crate) clients: u32,
    pub(crate) value_bytes: u64,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) cell: Cell,
    /// From 1.
    pub(crate) repetition: u32,
    pub(crate) target: Contestant,
}

impl Contestant {
    /// As on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Contestant::Device => "device",
            Contestant::Engine => "engine",
            Contestant::Rocksdb => "rocksdb",
            Contestant::Blobdb => "blobdb",
            Contestant::Fjall => "fjall",
            Contestant::Cluster => "cluster",
            Contestant::Etcd => "etcd",
            Contestant::Redis => "redis",
            Contestant::RedisEverysec => "redis-everysec",
        }
    }

    /// What `run --target` calls it; `None`: it is no target of load.
    pub(crate) const fn target(self) -> Option<TargetName> {
        Some(match self {
            Contestant::Device => return None,
            Contestant::Engine => TargetName::Engine,
            Contestant::Rocksdb => TargetName::Rocksdb,
            Contestant::Blobdb => TargetName::Blobdb,
            Contestant::Fjall => TargetName::Fjall,
            Contestant::Cluster => TargetName::Cluster,
            Contestant::Etcd => TargetName::Etcd,
            Contestant::Redis | Contestant::RedisEverysec => TargetName::Redis,
        })
    }

    /// Whether it has this mode. etcd always syncs; Redis is measured under two names.
    pub(crate) const fn has(self, mode: Mode) -> bool {
        let lacks = matches!(
            (self, mode),
            (Contestant::Etcd | Contestant::Redis, Mode::Nosync) | (Contestant::RedisEverysec, Mode::Sync)
        );
        !lacks
    }
}

/// The targets that are asked for, or all embedded ones of this build.
///
/// # Errors
/// If one is asked for that this build does not have.
pub(crate) fn targets(args: &CompareArgs) -> Result<Vec<Contestant>, NotCompiledIn> {
    if args.targets.is_empty() {
        let all = [
            Contestant::Device,
            Contestant::Engine,
            Contestant::Rocksdb,
            Contestant::Blobdb,
            Contestant::Fjall,
        ];
        let built = |target: &Contestant| target.target().is_none_or(TargetName::is_compiled_in);
        return Ok(all.into_iter().filter(built).collect());
    }
    let mut targets = Vec::new();
    for target in &args.targets {
        if let Some((name, feature)) = target.target().and_then(|name| Some((name, name.feature()?)))
            && !name.is_compiled_in()
        {
            return Err(NotCompiledIn(name.name(), feature));
        }
        if !targets.contains(target) {
            targets.push(*target);
        }
    }
    Ok(targets)
}

/// Every measurement, in order. A target without the cell's mode is left out of it.
pub(crate) fn turns(args: &CompareArgs, targets: &[Contestant]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for &config in &args.config {
        for &mode in &args.mode {
            for &clients in &args.clients {
                for &value_bytes in &args.value_sizes {
                    let cell = Cell { config, mode, clients, value_bytes };
                    let mut able: Vec<_> = targets.iter().filter(|target| target.has(mode)).collect();
                    for repetition in 1..=args.repetitions {
                        turns.extend(able.iter().map(|&&target| Turn { cell, repetition, target }));
                        if !able.is_empty() {
                            able.rotate_left(1);
                        }
                    }
                }
            }
        }
    }
    turns
}

/// Which targets are left out of which mode, in words.
pub(crate) fn left_out(args: &CompareArgs, targets: &[Contestant]) -> Vec<String> {
    let of = |mode: Mode| {
        let other = if mode == Mode::Sync { Mode::Nosync } else { Mode::Sync };
        targets.iter().filter(move |target| !target.has(mode)).map(move |target| {
            let (name, mode, other) = (target.name(), mode.name(), other.name());
            format!("{name} has no {mode} mode, and is not measured in it (it has --mode {other})")
        })
    };
    args.mode.iter().copied().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn args(line: &str) -> CompareArgs {
        Line::try_parse_from(format!("compare {line}").split_whitespace()).unwrap().args.spelled_out()
    }

    #[test]
    fn targets_take_turns_within_each_repetition() {
        let args = args("--value-sizes 1k,4k --clients 8 --repetitions 4");
        let (a, b, c) = (Contestant::Engine, Contestant::Device, Contestant::Fjall);
        let turns = turns(&args, &[a, b, c]);
        let round = |repetition, order: [Contestant; 3]| order.map(|target| (repetition, target));
        let rounds = [round(1, [a, b, c]), round(2, [b, c, a]), round(3, [c, a, b]), round(4, [a, b, c])];
        for cell in turns.chunks(12) {
            let order: Vec<_> = cell.iter().map(|turn| (turn.repetition, turn.target)).collect();
            assert_eq!(order, rounds.concat());
            assert!(cell.iter().all(|turn| turn.cell == cell[0].cell));
        }
        assert_eq!(turns.len(), 24);
    }

    #[test]
    fn every_cell_is_measured() {
        let args = args("--target engine --mode sync,nosync --config plain,compressed --repetitions 1");
        let turns = turns(&args, &targets(&args).unwrap());
        let cells: std::collections::BTreeSet<Cell> = turns.iter().map(|turn| turn.cell).collect();
        assert_eq!(
            (turns.len(), cells.len()),
            (32, 32),
            "4 sizes, 2 client counts, 2 modes, 2 configurations"
        );
    }

    #[test]
    fn what_has_no_such_mode_is_left_out() {
        assert!(!Contestant::Etcd.has(Mode::Nosync) && Contestant::Etcd.has(Mode::Sync));
        assert!(!Contestant::RedisEverysec.has(Mode::Sync) && Contestant::Redis.has(Mode::Sync));
        let args = args("--target device --mode nosync --quick");
        assert_eq!(turns(&args, &[Contestant::Etcd, Contestant::Device]).len(), 2, "two sizes of one target");
        let said = "etcd has no nosync mode, and is not measured in it (it has --mode sync)";
        assert_eq!(left_out(&args, &[Contestant::Etcd, Contestant::Device]), [said]);
    }

    #[cfg(not(feature = "rocksdb"))]
    #[test]
    fn what_is_not_built_in_names_its_feature() {
        let error = targets(&args("--target rocksdb")).unwrap_err().to_string();
        assert!(error.contains("--features rocksdb"), "{error}");
        assert_eq!(targets(&args("")).unwrap()[..2], [Contestant::Device, Contestant::Engine]);
    }

    #[test]
    fn settings_belong_to_a_target() {
        let args = args("--set rocksdb.write_buffer_size=1MiB --set engine.groups=4");
        assert_eq!(args.settings[1].target, Contestant::Engine);
        assert_eq!((&args.settings[0].name[..], &args.settings[0].value[..]), ("write_buffer_size", "1MiB"));
        for wrong in ["--set memtable=1", "--set floppy.a=1", "--set rocksdb.=1"] {
            assert!(Line::try_parse_from(format!("compare {wrong}").split_whitespace()).is_err(), "{wrong}");
        }
    }
}
