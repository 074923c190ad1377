//! Fuzz targets for every decoder: what reads bytes that a device, a peer or a file brought.
//!
//! A target's body is a plain function over bytes, so that it runs in two ways:
//!
//! - `cargo test -p terrane-fuzz`, on any compiler: each target over its corpus and some thousand seeded mutations of it;
//! - `just fuzz TARGET`, by cargo-fuzz with libFuzzer, which wants a nightly compiler (layout as the Rust Fuzz Book has it).
//!
//! `corpus/TARGET/seed-*` are valid inputs; the test holds them against what today's encoders write. Whatever else is there
//! was found once, and is kept.

mod media;
mod peer;
mod wire;

/// A decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As `just fuzz` and the folder of the corpus call it.
    pub name: &'static str,
    /// Decodes any bytes. Panics if the decoder is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    Target { name: "anchor", run: terrane_engine::fuzz::anchor },
    Target { name: "freed", run: terrane_engine::fuzz::freed },
    Target { name: "segment_header", run: terrane_engine::fuzz::segment_header },
    Target { name: "frame_header", run: terrane_engine::fuzz::frame_header },
    Target { name: "frame", run: terrane_engine::fuzz::frame },
    Target { name: "record", run: terrane_engine::fuzz::record },
    Target { name: "state_record", run: terrane_engine::fuzz::state_record },
    Target { name: "ops", run: terrane_engine::fuzz::ops },
    Target { name: "index", run: terrane_engine::fuzz::index },
    Target { name: "superblock", run: media::superblock },
    Target { name: "volume_record", run: terrane_ocssd::volume::fuzz::record },
    Target { name: "trace", run: media::trace },
    Target { name: "identify", run: media::identify },
    Target { name: "descriptor", run: media::descriptor },
    Target { name: "wire", run: wire::frame },
    Target { name: "peer_handshake", run: peer::handshake },
    Target { name: "peer_batch", run: peer::batch },
];

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or its decoder is wrong.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of that name").run)(bytes);
}

/// Valid inputs of a target, as today's encoders write them.
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    let named = |seeds: Vec<(&'static str, Vec<u8>)>| {
        seeds.into_iter().filter(|(of, _)| *of == name).map(|(_, bytes)| bytes).collect()
    };
    match name {
        "volume_record" => terrane_ocssd::volume::fuzz::seeds(),
        "superblock" | "trace" | "identify" | "descriptor" => named(media::seeds()),
        "wire" => wire::seeds(),
        "peer_handshake" | "peer_batch" => named(peer::seeds()),
        _ => named(terrane_engine::fuzz::seeds()),
    }
}

/// Puts the checksum of `bytes[..at]` at `at`, if there is room for it.
fn seal(bytes: &mut [u8], at: usize) {
    if let Some((body, place)) = bytes.split_at_mut_checked(at)
        && let Some(place) = place.first_chunk_mut()
    {
        *place = crc32c::crc32c(body).to_le_bytes();
    }
}
