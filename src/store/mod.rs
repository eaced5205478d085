//! The store: a log of full stripes with a map from (volume, address, version) to place.

pub mod interface;
