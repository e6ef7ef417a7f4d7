//! Buffers that are kept for the next use.

pub(crate) use larvatus_graph::pool::{Floats, Pool};
