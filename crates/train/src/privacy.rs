//! What a worker may learn of one training image, as an account of zero-concentrated differential privacy.
//!
//! * **Unit**: one image with its label, added or removed. Its slot stays: where an image is missing, its slot is filled by the same
//!   noise around zero and by a uniform label, so the number of slots is public.
//! * **Release**: a residual is scaled to integers, clipped to a norm, and gets discrete Gaussian noise. With norm Δ and deviation σ
//!   that is Δ²/(2σ²)-zCDP (Canonne, Kamath, Steinke 2020, theorem 4, by composition over coordinates).
//! * **Label**: k-ary randomized response with e^ε: an ε-DP release, so ε²/2-zCDP. Against the uniform label of an empty slot its
//!   ratio is at most e^ε, too.
//! * **Composition**: ρ adds up over layers, steps and epochs. What is ε-DP by itself counts as ε²/2, or is added to the ε of the
//!   rest, whichever gives less; both hold. No amplification is claimed: batches are shuffled, not sampled, and the worker sees
//!   which slot is in which batch.
//! * **(ε, δ)**: δ ≤ inf over α > 1 of exp((α − 1)(αρ − ε)) / (α − 1) · (1 − 1/α)^α (the same, proposition 12).
//!
//! Source: Canonne, Kamath and Steinke, *The Discrete Gaussian for Differential Privacy* (NeurIPS 2020), algorithms 1 to 3 for the
//! sampler, which uses integers alone: floating-point noise has been attacked (Mironov 2012).

use larvatus_host::entropy;

/// ρ of one kind of release, and how often an image's slot is released so.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What is released.
    pub what: String,
    /// ρ of one release.
    pub rho: f64,
    /// How often.
    pub times: u64,
}

/// What a run has spent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    entries: Vec<Entry>,
    /// Releases that are ε-DP by themselves, and their ε.
    pure: Vec<(String, f64)>,
    /// What the worker sees besides, for which nothing is claimed.
    uncovered: Vec<String>,
}

impl Ledger {
    /// Books releases.
    pub fn release(&mut self, what: &str, rho: f64, times: u64) {
        match self
            .entries
            .iter_mut()
            .find(|e| e.what == what && e.rho == rho)
        {
            Some(entry) => entry.times += times,
            None => self.entries.push(Entry {
                what: what.to_owned(),
                rho,
                times,
            }),
        }
    }

    /// Books a release that is ε-DP by itself.
    pub fn pure(&mut self, what: &str, epsilon: f64) {
        self.pure.push((what.to_owned(), epsilon));
    }

    /// The ε of the whole run at this δ.
    pub fn epsilon(&self, delta: f64) -> f64 {
        let added: f64 = self.pure.iter().map(|(_, epsilon)| epsilon).sum();
        let squares: f64 = self.pure.iter().map(|(_, e)| e * e / 2.0).sum();
        (epsilon(self.rho(), delta) + added).min(epsilon(self.rho() + squares, delta))
    }

    /// Notes what nothing is claimed for.
    pub fn uncovered(&mut self, what: &str) {
        if !self.uncovered.iter().any(|noted| noted == what) {
            self.uncovered.push(what.to_owned());
        }
    }

    /// ρ of all releases but those that are ε-DP by themselves.
    pub fn rho(&self) -> f64 {
        self.entries.iter().map(|e| e.rho * e.times as f64).sum()
    }

    /// The statement of the whole run, at this δ.
    pub fn statement(&self, delta: f64) -> String {
        let nothing = self.entries.is_empty() && self.pure.is_empty();
        let mut text = match nothing {
            true => "nothing was released with noise".to_owned(),
            false => format!(
                "({:.3}, {delta:e})-DP for one training image with its label, added or removed, over the whole run",
                self.epsilon(delta)
            ),
        };
        for Entry { what, rho, times } in &self.entries {
            text += &format!("\n  covers {what}: rho {rho:.5} x {times}");
        }
        for (what, epsilon) in &self.pure {
            text += &format!("\n  covers {what}: epsilon {epsilon:.3}");
        }
        for what in &self.uncovered {
            text += &format!(
                "\n  DOES NOT COVER {what}, which the worker sees: no privacy is claimed for this run"
            );
        }
        text
    }

    /// Whether all that the worker sees is covered.
    pub fn is_whole(&self) -> bool {
        self.uncovered.is_empty()
    }
}

/// ln δ of ρ-zCDP at this ε, the least over orders that are tried.
fn log_delta(rho: f64, epsilon: f64) -> f64 {
    let at = |alpha: f64| {
        (alpha - 1.0) * (alpha * rho - epsilon) - (alpha - 1.0).ln()
            + alpha * (-1.0 / alpha).ln_1p()
    };
    // Convex enough in ln(α − 1) for a grid and its refinement; any α gives a valid bound.
    let mut best = (f64::INFINITY, 0.0);
    for step in -200..=400 {
        let x = f64::from(step) * 0.05;
        let value = at(1.0 + x.exp());
        if value < best.0 {
            best = (value, x);
        }
    }
    let (_, centre) = best;
    for step in -100..=100 {
        let value = at(1.0 + (centre + f64::from(step) * 0.0005).exp());
        best.0 = best.0.min(value);
    }
    best.0
}

/// The least ε that is found for ρ-zCDP at this δ; it holds, whether or not a smaller one would.
pub fn epsilon(rho: f64, delta: f64) -> f64 {
    if rho <= 0.0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, rho + 2.0 * (rho * (1.0 / delta).ln()).sqrt() + 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if log_delta(rho, middle) <= delta.ln() {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Uniform words that nobody can predict: a keystream under a key of the operating system's generator.
#[derive(Debug)]
pub struct Coins {
    key: [u8; 32],
    block: u64,
    words: Vec<u8>,
}

impl Coins {
    /// Under a fresh key.
    ///
    /// # Errors
    /// The system's, where it gives no entropy.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self::of(entropy()?))
    }

    /// Under this key: for tests, and for nothing else.
    pub fn of(key: [u8; 32]) -> Self {
        Self {
            key,
            block: 0,
            words: Vec::new(),
        }
    }

    /// 64 bits.
    fn word(&mut self) -> u64 {
        if self.words.len() < 8 {
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            hasher.update(&self.block.to_le_bytes());
            self.block += 1;
            self.words.resize(1 << 13, 0);
            hasher.finalize_xof().fill(&mut self.words);
        }
        let mut word = [0; 8];
        let from = self.words.len() - 8;
        word.copy_from_slice(&self.words[from..]);
        self.words.truncate(from);
        u64::from_le_bytes(word)
    }

    /// Uniform below a count, exactly; the count must not be 0.
    fn below(&mut self, count: u64) -> u64 {
        // Words of an incomplete last round of counts are drawn again.
        let whole = u64::MAX - u64::MAX % count;
        loop {
            let word = self.word();
            if word < whole {
                return word % count;
            }
        }
    }

    /// True with probability over/under, exactly: digits of a uniform number against those of the quotient, 32 bits at a time.
    fn less(&mut self, over: u128, under: u128) -> bool {
        if over >= under {
            return true;
        }
        let mut rest = over;
        loop {
            // under is below 2⁹⁶, so 32 bits more of the rest fit.
            let digit = (rest << 32) / under;
            rest = (rest << 32) % under;
            let drawn = u128::from(self.word() >> 32);
            if drawn != digit {
                return drawn < digit;
            }
            if rest == 0 {
                return false;
            }
        }
    }

    /// True with probability exp(−over/under), exactly.
    fn exponential(&mut self, over: u128, under: u128) -> bool {
        let mut whole = over / under;
        while whole > 0 {
            if !self.exponential_below_one(1, 1) {
                return false;
            }
            whole -= 1;
        }
        self.exponential_below_one(over % under, under)
    }

    /// As [`exponential`](Self::exponential), where `over` is no larger than `under`.
    fn exponential_below_one(&mut self, over: u128, under: u128) -> bool {
        let mut k = 1u64;
        loop {
            // True with probability over/(under · k).
            if self.less(over, under) && self.below(k) == 0 {
                k += 1;
            } else {
                return k % 2 == 1;
            }
        }
    }

    /// Discrete Laplace with scale t: P(x) ∝ exp(−|x|/t).
    fn laplace(&mut self, t: u64) -> i64 {
        loop {
            let u = self.below(t);
            if !self.exponential(u128::from(u), u128::from(t)) {
                continue;
            }
            let mut v = 0u64;
            while self.exponential_below_one(1, 1) {
                v += 1;
            }
            let magnitude = u + t * v;
            let negative = self.below(2) == 1;
            if negative && magnitude == 0 {
                continue;
            }
            let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
            return if negative { -magnitude } else { magnitude };
        }
    }

    /// Discrete Gaussian with variance parameter σ²: P(x) ∝ exp(−x²/(2σ²)), exactly.
    pub fn gaussian(&mut self, sigma: u32) -> i64 {
        // Up to 2²⁰, so that 2σ²t² stays below 2⁹⁶.
        let sigma = u64::from(sigma.clamp(1, 1 << 20));
        let t = sigma + 1;
        loop {
            let y = self.laplace(t);
            // exp(−(|y| − σ²/t)²/(2σ²)) = exp(−(|y|·t − σ²)²/(2σ²t²)).
            let off = u128::from(y.unsigned_abs()) * u128::from(t);
            let off = off.abs_diff(u128::from(sigma * sigma));
            let under = 2 * u128::from(sigma * sigma) * u128::from(t * t);
            if self.exponential(off * off, under) {
                return y;
            }
        }
    }

    /// The class, or with the rest of the probability another one: randomized response with e^ε, where ε is ln(odds).
    pub fn respond(&mut self, class: u8, classes: u8, odds: u32) -> u8 {
        let classes = u64::from(classes.max(1));
        let draw = self.below(u64::from(odds.max(1)) + classes - 1);
        if draw < u64::from(odds.max(1)) {
            return class;
        }
        let others = (draw - u64::from(odds.max(1))) as u8;
        if others >= class { others + 1 } else { others }
    }
}

/// How residuals are released: clipped to a norm of `clip` grid steps, with noise of deviation `sigma` grid steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Release {
    /// Largest norm that passes, in grid steps.
    pub clip: u32,
    /// Deviation of the noise, in grid steps.
    pub sigma: u32,
    /// A grid step, in units of the residual.
    pub step: f32,
}

impl Release {
    /// With residuals clipped to the norm `clip`, noise of `multiplier` times that, on a grid of 1/1024 of the clip.
    pub fn new(clip: f32, multiplier: f64) -> Self {
        let steps = 1024u32;
        // Rounded up: no less noise than was asked for.
        let sigma = (f64::from(steps) * multiplier).ceil().clamp(1.0, 1e6) as u32;
        Self {
            clip: steps,
            sigma,
            step: clip / steps as f32,
        }
    }

    /// ρ of one release: Δ²/(2σ²).
    pub fn rho(&self) -> f64 {
        let ratio = f64::from(self.clip) / f64::from(self.sigma);
        0.5 * ratio * ratio
    }

    /// The residual in grid steps, its norm at most the clip, exactly; values that are no numbers count as zero.
    pub fn quantise(&self, residual: &[f32]) -> Vec<i64> {
        let whole = f64::from(self.clip);
        let steps = |x: &f32| match x.is_finite() {
            true => f64::from(*x) / f64::from(self.step),
            false => 0.0,
        };
        let norm = residual
            .iter()
            .map(|x| steps(x).powi(2))
            .sum::<f64>()
            .sqrt();
        let mut scale = if norm > whole { whole / norm } else { 1.0 };
        loop {
            // Towards zero: rounding makes no norm larger.
            let steps: Vec<i64> = residual.iter().map(|x| (steps(x) * scale) as i64).collect();
            let squares: u128 = steps
                .iter()
                .map(|q| u128::from(q.unsigned_abs()).pow(2))
                .sum();
            if squares <= u128::from(self.clip).pow(2) {
                return steps;
            }
            scale *= 0.999;
        }
    }

    /// What the worker gets of a residual, in units of the residual.
    pub fn noisy(&self, residual: &[f32], coins: &mut Coins) -> Vec<f32> {
        let steps = self.quantise(residual).into_iter();
        steps
            .map(|q| (q + coins.gaussian(self.sigma)) as f32 * self.step)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_has_the_moments_and_masses_of_its_law() {
        let mut coins = Coins::of([7; 32]);
        for sigma in [1u32, 3, 40] {
            let count = 60_000;
            let samples: Vec<i64> = (0..count).map(|_| coins.gaussian(sigma)).collect();
            let square = samples.iter().map(|x| (x * x) as f64).sum::<f64>() / f64::from(count);
            let mean = samples.iter().sum::<i64>() as f64 / f64::from(count);
            // The variance of the discrete law, summed.
            let mass = |x: i64| (-((x * x) as f64) / (2.0 * f64::from(sigma).powi(2))).exp();
            let range = -12 * i64::from(sigma)..=12 * i64::from(sigma);
            let total: f64 = range.clone().map(mass).sum();
            let variance: f64 = range.map(|x| mass(x) * (x * x) as f64).sum::<f64>() / total;
            assert!(
                (square / variance - 1.0).abs() < 0.03,
                "{sigma}: {square} for {variance}"
            );
            assert!(mean.abs() < 5.0 * variance.sqrt() / f64::from(count).sqrt());
            for x in 0..3 {
                let seen = samples.iter().filter(|s| **s == x).count() as f64 / f64::from(count);
                let expected = mass(x) / total;
                assert!(
                    (seen - expected).abs() < 5.0 * (expected / f64::from(count)).sqrt(),
                    "{sigma} {x}"
                );
            }
        }
    }

    #[test]
    fn epsilon_is_that_of_the_theory() {
        // The bound's value, computed by another program on a grid of its own.
        let known = [
            (0.6, 1, 8.60325),
            (28.0, 1950, 8.05377),
            (5.0, 1, 0.79432),
            (1.0, 1, 4.72839),
        ];
        for (z, times, expected) in known {
            let mut ledger = Ledger::default();
            ledger.release("r", 0.5 / (z * z), times);
            let epsilon = ledger.epsilon(1e-5);
            assert!((epsilon - expected).abs() < 1e-4, "{z}: {epsilon}");
        }
        let mut ledger = Ledger::default();
        ledger.release("r", 0.5, 1);
        ledger.pure("l", 1.5);
        assert!((ledger.epsilon(1e-5) - 6.22839).abs() < 1e-4);
        ledger.pure("m", 0.01);
        assert!(ledger.epsilon(1e-5) < 6.2384);
    }

    #[test]
    fn what_is_released_never_exceeds_its_norm() {
        let release = Release::new(3.0, 0.6);
        for scale in [0.1, 1.0, 3.0, 1e9, f32::INFINITY, f32::NAN] {
            let residual: Vec<f32> = (0..100).map(|i| scale * ((i % 7) as f32 - 3.0)).collect();
            let steps = release.quantise(&residual);
            let norm: i64 = steps.iter().map(|q| q * q).sum();
            assert!(
                norm <= i64::from(release.clip) * i64::from(release.clip),
                "{scale}: {norm}"
            );
        }
        assert!(release.rho() <= 0.5 / 0.36);
        let mut coins = Coins::of([1; 32]);
        let same = (0..10_000)
            .filter(|_| coins.respond(3, 10, 20) == 3)
            .count() as f64;
        assert!((same / 10_000.0 - 20.0 / 29.0).abs() < 0.03);
        assert!((0..1000).all(|_| coins.respond(9, 10, 1) < 10));
    }

    #[test]
    fn a_statement_names_what_it_does_not_cover() {
        let mut ledger = Ledger::default();
        ledger.release("residuals of a", 0.01, 3);
        ledger.release("residuals of a", 0.01, 2);
        assert!((ledger.rho() - 0.05).abs() < 1e-12 && ledger.is_whole());
        ledger.uncovered("gradients");
        let text = ledger.statement(1e-5);
        assert!(
            text.contains("x 5") && text.contains("DOES NOT COVER gradients"),
            "{text}"
        );
    }
}
