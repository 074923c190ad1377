//! Counting: what the workers saw ([`tally`]), what it cost the system ([`meter`]), how long it was away ([`outage`]).

pub(crate) mod meter;
pub(crate) mod outage;
pub(crate) mod process;
pub(crate) mod tally;
pub(crate) mod timeline;
