//! The wire format (sans-IO), routing, and the async client of Terrane.

pub mod routing;
pub mod wire;
