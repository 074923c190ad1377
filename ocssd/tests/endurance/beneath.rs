//! What struck the device beneath a volume, and what of it a volume may pass on to its host.
//!
//! | fault beneath | what the host may see |
//! |---|---|
//! | a program that fails, a chunk that is closed early | nothing; after a restart without a cut, volatile data may be gone |
//! | a torn write | an I/O error; the line is closed where it is whole; or no remap is recorded in this life |
//! | a failed flush | an I/O error of that flush, and of everything that has to become durable in this life |
//! | a read error | an I/O error of a read; a line that could not be moved for it is closed |
//! | a latent read error | one sector that cannot be read; a line that could not be moved for it is closed |
//! | a chunk that goes offline | a notice; what that member held cannot be read; the line is closed |
//! | a failed reset, weak reads, latency | nothing |
//!
//! Never, whatever struck: a durable sector on a sound member that is not there, or wrong data.

use terrane_ocssd::sim::Fault;
use terrane_ocssd::{MediaError, VolumeError};

/// What struck so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beneath {
    /// Since the volume was opened.
    life: Struck,
    /// A flush failed since power last came.
    flush_failed_since_power: bool,
    /// Latent read errors that no sector was found for yet.
    latent_unseen: u32,
    /// Chunks that went offline and of which no line was said to have lost them.
    offline_unseen: u32,
    /// Read errors ever.
    read_errors: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Struck {
    /// Members moved to other chunks.
    moved: bool,
    torn: bool,
    flush: bool,
    read: bool,
    latent: bool,
    offline: bool,
}

impl Beneath {
    pub(crate) fn strikes(&mut self, fault: Fault) {
        match fault {
            Fault::FailedProgram | Fault::EarlyClose => self.life.moved = true,
            Fault::TornWrite => self.life.torn = true,
            Fault::FailedFlush => {
                self.life.flush = true;
                self.flush_failed_since_power = true;
            }
            Fault::ReadError => {
                self.life.read = true;
                self.read_errors += 1;
            }
            Fault::LatentReadError => {
                self.life.latent = true;
                self.latent_unseen += 1;
            }
            Fault::Offline => {
                self.life.offline = true;
                self.offline_unseen += 1;
            }
            _ => {}
        }
    }

    /// The volume was opened again.
    pub(crate) fn opened(&mut self, power_lost: bool) {
        // What is lost stays lost.
        let Struck { latent, offline, .. } = self.life;
        self.life = Struck { latent, offline, ..Struck::default() };
        self.flush_failed_since_power &= !power_lost;
    }

    pub(crate) fn read_errors(&self) -> u64 {
        self.read_errors
    }

    /// A flush failed, and what it had to cover is not forgotten yet.
    pub(crate) fn flush_failed_since_power(&self) -> bool {
        self.flush_failed_since_power
    }

    /// A program of which nobody knows what is there.
    pub(crate) fn tore(&self) -> bool {
        self.life.torn
    }

    /// Whether a line may be closed by what struck in this life.
    pub(crate) fn breaks_lines(&self) -> bool {
        let Struck { torn, read, latent, offline, .. } = self.life;
        torn || read || latent || offline
    }

    /// Whether what was acknowledged as volatile may be gone although only the host died.
    pub(crate) fn moves_lines(&self) -> bool {
        self.life.moved || self.breaks_lines()
    }

    /// A line lost a member. False: no chunk went offline that could have been it.
    pub(crate) fn explains_offline(&mut self) -> bool {
        let explained = self.offline_unseen > 0;
        self.offline_unseen -= u32::from(explained);
        explained
    }

    /// A sector cannot be read, and nothing else explains it. False: nothing does.
    pub(crate) fn explains_unreadable(&mut self) -> bool {
        let explained = self.latent_unseen > 0;
        self.latent_unseen -= u32::from(explained);
        explained
    }

    /// Whether an error of a write, flush, finish or reset may come from what struck.
    pub(crate) fn explains(&self, error: &MediaError) -> bool {
        let Struck { torn, flush, read, latent, offline, .. } = self.life;
        match cause(error) {
            Some(Cause::Device) if is_of_flush(error) => torn || offline || flush,
            Some(Cause::Device) => torn || offline,
            Some(Cause::FlushFailed) => flush,
            Some(Cause::MetadataFailed) => torn,
            Some(Cause::NotEvacuated) => read || latent || offline,
            Some(Cause::TooFewSpares) | None => false,
        }
    }
}

/// Why an operation of a volume failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The device's own error.
    Device,
    FlushFailed,
    MetadataFailed,
    NotEvacuated,
    TooFewSpares,
}

fn cause(error: &MediaError) -> Option<Cause> {
    let MediaError::Io { source, .. } = error else { return None };
    match source.get_ref().and_then(|source| source.downcast_ref::<VolumeError>()) {
        None => Some(Cause::Device),
        Some(VolumeError::FlushFailed) => Some(Cause::FlushFailed),
        Some(VolumeError::MetadataFailed(_)) => Some(Cause::MetadataFailed),
        Some(VolumeError::NotEvacuated(_)) => Some(Cause::NotEvacuated),
        Some(VolumeError::TooFewSpares { .. }) => Some(Cause::TooFewSpares),
        Some(_) => None,
    }
}

fn is_of_flush(error: &MediaError) -> bool {
    matches!(error, MediaError::Io { operation: "flush", .. })
}

/// Whether an error says that its line takes no more writes. The others are of what all lines have in common.
pub(crate) fn says_that_line_is_closed(error: &MediaError) -> bool {
    match cause(error) {
        Some(Cause::Device) => !is_of_flush(error),
        Some(Cause::NotEvacuated | Cause::TooFewSpares) => true,
        Some(Cause::FlushFailed | Cause::MetadataFailed) | None => false,
    }
}
