//! How a consumer goes to sleep without missing a message: the park and wake protocol of the mesh.
//!
//! A consumer says that it parks and **then** looks at its rings once more; a producer pushes and **then**
//! looks whether the consumer said so. The two full fences make it impossible that both look too early
//! (the store-buffer pattern, "Dekker's handshake"), so one of them sees the other:
//!
//! ```text
//!  consumer                          producer
//!  parked = true                     push
//!  fence(SeqCst)                     fence(SeqCst)
//!  look at the rings                 look at `parked`
//!  nothing? wait for the bell        set? clear it and ring
//! ```
//!
//! Invariants:
//! - If a message is in a ring while its consumer waits, somebody rings or has rung.
//! - Of the producers that see one parking, exactly one rings.
//!
//! `tests/mesh_loom.rs` compiles this very file over loom's atomics (the `sync` module beside it is the
//! alias) and tries every interleaving.

use super::sync::{AtomicBool, Ordering, fence};

/// Shared by a consumer and all producers of its rings.
#[derive(Debug)]
pub struct Parker {
    parked: AtomicBool,
}

impl Default for Parker {
    fn default() -> Self {
        Self::new()
    }
}

impl Parker {
    /// The consumer is awake.
    pub fn new() -> Self {
        Self { parked: AtomicBool::new(false) }
    }

    /// Consumer: "I park". After this it must look at all its rings again, and wait for its bell only if
    /// they are empty.
    pub fn prepare_park(&self) {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Consumer: "I am awake". A producer that had already seen it parked may still ring.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Producer, after a push: true if the caller must ring the consumer's bell.
    #[must_use]
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain load keeps the cache line shared while the consumer is awake, which is the common case.
        self.parked.load(Ordering::Relaxed)
            && self.parked.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
