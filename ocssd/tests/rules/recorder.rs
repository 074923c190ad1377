//! The recorder over the simulated medium: it changes no rule.

use std::future::Future;
use std::io::Sink;

use terrane_ocssd::trace::Recorder;
use terrane_ocssd::{SimMedia, SimOptions};

use crate::contract::{Harness, every_rule};
use crate::sim::Sim;

struct Recorded(Sim);

impl Harness for Recorded {
    type Media = Recorder<SimMedia, Sink>;

    fn create(&self) -> Self::Media {
        Recorder::new(self.0.create(), std::io::sink()).unwrap().0
    }

    fn reopen(&self, media: Self::Media) -> Self::Media {
        Recorder::new(self.0.reopen(media.into_media()), std::io::sink()).unwrap().0
    }

    fn remembers_write_pointers(&self) -> bool {
        self.0.remembers_write_pointers()
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.run(future)
    }
}

#[test]
fn recorder() {
    for seed in 0..20 {
        let options =
            SimOptions { seed, yields_max: 3, conventional: seed % 2 == 0, ..SimOptions::default() };
        every_rule(&Recorded(Sim::with(options)));
    }
}
