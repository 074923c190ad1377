//! From the command line to a target: the one place that knows them all.

use std::path::{Path, PathBuf};
use std::pin::pin;

use anyhow::Context;

#[cfg(any(feature = "etcd", feature = "fjall", feature = "redis", feature = "rocksdb"))]
use crate::cli::target::TargetName;
use crate::cli::target::{Config, Mode, NotCompiledIn, TargetArgs};
use crate::cli::usage;
use crate::interrupt::{Interrupt, Interrupted};
use crate::place::Place;
use crate::target::Connect;
use crate::target::cluster::ClusterConnect;
use crate::target::engine::{EngineConnect, GiveUp};
use crate::target::setup::Setup;

/// What is going to be written: embedded stores are sized by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// Bytes of keys and values that live at once.
    pub(crate) live_bytes: u64,
    /// Bytes of keys and values that will be written at most, the live ones included.
    pub(crate) written_bytes: u64,
    /// Bytes of a value, on average.
    #[cfg_attr(not(feature = "rocksdb"), expect(dead_code, reason = "only BlobDB is sized by it"))]
    pub(crate) value_bytes: u64,
    /// What each write costs beside its key and value, at most.
    pub(crate) overhead_bytes: u64,
    /// Threads that call an embedded store.
    pub(crate) threads: u32,
    /// An embedded store must be in its folder already: nothing is going to be loaded.
    pub(crate) must_exist: bool,
}

/// What is done with a target, whatever its type.
pub(crate) trait Visit {
    /// What it comes to.
    type Output;

    /// Does it. `settings`: how the target is set up, for the report.
    async fn visit<C: Connect>(
        self,
        connect: C,
        settings: Vec<(String, String)>,
    ) -> anyhow::Result<Self::Output>;
}

/// Least that an embedded store caches, unless told otherwise.
const CACHE_MIN: u64 = 8 << 20;

/// Opens the target that the command line names, and does something with it.
pub(crate) async fn with_target<V: Visit>(
    args: &TargetArgs,
    amount: Amount,
    interrupt: &Interrupt,
    visit: V,
) -> anyhow::Result<V::Output> {
    let name = args.name();
    if let (false, Some(feature)) = (name.is_compiled_in(), name.feature()) {
        return Err(NotCompiledIn(name.name(), feature).into());
    }
    args.check()?;
    if !name.is_embedded() {
        return match name {
            #[cfg(feature = "etcd")]
            TargetName::Etcd => {
                let connect = crate::target::etcd::EtcdConnect::new(&args.addresses(), watched(args))?;
                let settings = connect.settings().await?;
                visit.visit(connect, settings).await
            }
            #[cfg(feature = "redis")]
            TargetName::Redis => {
                let connect = crate::target::redis::RedisConnect::new(&args.addresses(), watched(args))?;
                let settings = connect.settings().await?;
                visit.visit(connect, settings).await
            }
            _ => visit.visit(ClusterConnect::new(&args.addresses()), Vec::new()).await,
        };
    }
    if let (true, Some(folder)) = (amount.must_exist, &args.data) {
        let folder_name = folder.display();
        usage(
            std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()),
            &format!("--data {folder_name}: no store is there; name the folder that an earlier run loaded"),
        )?;
    }
    let existed = args.data.as_ref().is_some_and(|folder| folder.exists());
    // Declared first: removed after the store in it is closed.
    let place = match &args.data {
        Some(folder) => Place::named(folder, 0)?,
        None => Place::temporary(amount.written_bytes)?,
    };
    let setup = setup(args, amount, place.path());
    match name {
        #[cfg(feature = "rocksdb")]
        TargetName::Rocksdb | TargetName::Blobdb => {
            use crate::target::rocksdb::{Layout, RocksConnect};
            let layout = if name == TargetName::Blobdb {
                Layout::Blob { value_bytes: amount.value_bytes }
            } else {
                Layout::Leveled
            };
            let connect = RocksConnect::open(setup, layout)?;
            let settings = connect.settings();
            visit.visit(connect, settings).await
        }
        #[cfg(feature = "fjall")]
        TargetName::Fjall => {
            let connect = crate::target::fjall::FjallConnect::open(setup)?;
            let settings = connect.settings();
            visit.visit(connect, settings).await
        }
        _ => {
            let give_up = GiveUp::default();
            let asked = give_up.clone();
            let mut opening = pin!(off_this_thread(move || EngineConnect::new(setup, &asked)));
            let connect = match interrupt.or_interrupted(&mut opening).await {
                Err(error) if error.is::<Interrupted>() => {
                    let left = tokio::select! {
                        () = give_up.give_up() => {
                            if let (Some(folder), false) = (&args.data, existed) {
                                // Made for the device; whatever else is in it by now keeps it.
                                let _ = std::fs::remove_dir(folder);
                            }
                            "nothing is left of the device that was being laid out".to_owned()
                        }
                        _ = &mut opening => match &args.data {
                            Some(folder) => format!("{} is laid out, and stays", folder.display()),
                            None => "nothing is left of the device that was laid out".to_owned(),
                        }
                    };
                    return Err(error.context(left));
                }
                opened => opened.context("opening the embedded engine")?,
            };
            let settings = connect.settings();
            let visited = visit.visit(connect.clone(), settings).await;
            if visited.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
                connect.discard_traces();
            }
            visited
        }
    }
}

/// Does what blocks, and perhaps for long (a device is written once when it is laid out), on a thread of its own: a
/// signal is heard meanwhile. Nobody waits for the thread when the process ends.
async fn off_this_thread<R: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<R> + Send + 'static,
) -> anyhow::Result<R> {
    let (tell, done) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("open".to_owned())
        .spawn(move || {
            // Nobody listens any more only if it was interrupted.
            let _ = tell.send(work());
        })
        .context("cannot start a thread")?;
    done.await.context("it panicked")?
}

/// The servers' processes, where they run here.
#[cfg(any(feature = "etcd", feature = "redis"))]
fn watched(args: &TargetArgs) -> crate::target::footprint::Watched {
    crate::target::footprint::Watched { pids: args.server_pid.clone(), folders: args.server_data.clone() }
}

fn setup(args: &TargetArgs, amount: Amount, folder: &Path) -> Setup {
    let capacity = amount.written_bytes.saturating_add(amount.overhead_bytes);
    // Popular records do not spread evenly over the shards.
    let capacity = capacity.saturating_add(capacity / 4);
    let least = u64::from(amount.threads) * (256 << 20);
    Setup {
        folder: PathBuf::from(folder),
        durable: args.mode == Mode::Sync,
        compressed: args.config == Config::Compressed,
        cache_bytes: args.cache.unwrap_or((amount.live_bytes / 16).max(CACHE_MIN)),
        capacity_bytes: args.capacity.unwrap_or(capacity.max(least).next_multiple_of(64 << 20)),
        threads: amount.threads,
        overrides: args.overrides(),
        trace: args.trace.clone(),
    }
}
