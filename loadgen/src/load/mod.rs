//! Sending load: the crew of threads and workers ([`runner`]), what they do ([`phases`]), and a whole run of it
//! ([`session`]).

pub(crate) mod phases;
pub(crate) mod plan;
pub(crate) mod population;
pub(crate) mod runner;
pub(crate) mod session;
