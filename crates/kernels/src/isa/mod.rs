//! Which instruction sets may be used: capability tokens, found at run time.
//!
//! A token can be had from its `detect` only, so holding one proves that this CPU has the instructions; that proof is
//! what the `unsafe` blocks below this module rely on. Setting compiler flags is neither needed nor of use.
//!
//! Under miri, and on other architectures, there are only the definitions and the portable form.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod portable;
pub(crate) mod vector;

#[cfg(not(target_arch = "x86_64"))]
use core::convert::Infallible;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
type Proof = ();
/// No token exists elsewhere.
#[cfg(not(target_arch = "x86_64"))]
type Proof = Infallible;

/// Proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(Proof);

/// Proof that this CPU has the AVX-512 of recent servers: F, BW, DQ, VL, IFMA, VNNI and VAES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(Proof);

impl Avx2 {
    /// A token if this CPU (and operating system) has AVX2.
    pub fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if is_x86_feature_detected!("avx2") {
            return Some(Self(()));
        }
        None
    }
}

impl Avx512 {
    /// A token if this CPU (and operating system) has F, BW, DQ, VL, IFMA, VNNI, VAES, AES-NI and AVX2.
    pub fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("vaes")
        {
            return Some(Self(()));
        }
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Avx2 {
    fn run<P: vector::Pass>(self, _pass: P) -> P::Output {
        match self.0 {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Avx512 {
    fn run<P: vector::Pass>(self, _pass: P) -> P::Output {
        match self.0 {}
    }
}

/// An instruction set that kernels may use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// The definitions, one element at a time.
    Scalar,
    /// The passes over arrays, in portable Rust: what other CPUs run.
    Portable,
    /// 256-bit vectors.
    Avx2(Avx2),
    /// 512-bit vectors.
    Avx512(Avx512),
}

impl Isa {
    /// The fastest that this CPU has. Detected once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wide = Avx512::detect().map(Self::Avx512);
            wide.or_else(|| Avx2::detect().map(Self::Avx2))
                .unwrap_or(Self::Portable)
        })
    }

    /// All that this CPU has, the slowest first; always starts with [`Isa::Scalar`].
    pub fn available() -> Vec<Self> {
        let avx2 = Avx2::detect().map(Self::Avx2);
        let avx512 = Avx512::detect().map(Self::Avx512);
        [Some(Self::Scalar), Some(Self::Portable), avx2, avx512]
            .into_iter()
            .flatten()
            .collect()
    }

    /// A short lower-case name: `scalar`, `portable`, `avx2` or `avx512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn the_best_instruction_set_is_the_last_available() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::Scalar));
        assert_eq!(available.last(), Some(&Isa::best()));
        for name in ["scalar", "portable", "avx2", "avx512"] {
            if !available.iter().any(|isa| isa.name() == name) {
                println!("skipped: {name} (this CPU lacks it)");
            }
        }
    }
}
