//! The variants: one file for each instruction set, reached through its token.

pub(super) mod avx2;
pub(super) mod avx512;
