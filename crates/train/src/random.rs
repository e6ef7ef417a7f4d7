//! Numbers for initial weights, orders of images and probes: reproducible, and no secrets.
//!
//! Source: the generator SplitMix64 (Steele, Lea, Flood 2014); Box and Muller (1958) for normal numbers.

/// A reproducible generator. Its state is one word, so a checkpoint can keep it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed and the number of a stream; streams of one seed have nothing to do with each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut first = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        first.word();
        Self(first.word())
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below a count that is small beside 2⁶⁴; 0 where the count is 0.
    pub fn below(&mut self, count: usize) -> usize {
        let wide = u128::from(self.word()) * count as u128;
        (wide >> 64) as usize
    }

    /// Normal with mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// As many normal numbers with this deviation.
    pub fn normals(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        (0..count)
            .map(|_| (deviation * self.normal()) as f32)
            .collect()
    }

    /// The numbers below `count` in an order of its choice.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}
