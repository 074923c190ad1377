//! The overlay over the simulated medium: to whoever uses it, a medium like any other.

use std::future::Future;

use terrane_ocssd::{Media, Overlay, SimMedia, SimOptions};

use crate::contract::{Harness, every_rule};
use crate::sim::Sim;

struct Overlaid(Sim);

impl Harness for Overlaid {
    type Media = Overlay<SimMedia>;

    fn create(&self) -> Self::Media {
        let media = self.0.create();
        self.0.run(Overlay::new(media)).unwrap()
    }

    /// What is written here lives as long as the overlay: it is what comes back.
    fn reopen(&self, media: Self::Media) -> Self::Media {
        media
    }

    fn remembers_write_pointers(&self) -> bool {
        true
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.run(future)
    }
}

#[test]
fn overlay() {
    for seed in 0..20 {
        let options = SimOptions { seed, yields_max: 3, conventional: false, ..SimOptions::default() };
        let overlaid = Overlaid(Sim::with(options));
        every_rule(&overlaid);
        let media = overlaid.create();
        assert_eq!(media.counters().written_bytes, 0);
    }
}
