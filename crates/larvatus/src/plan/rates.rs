//! What work costs: here, on the link, and at the worker.
//!
//! [`Rates`] are plain figures. The default is rough constants of one AVX-512 core with a link and
//! a worker that cost nothing; `larvatus calibrate` measures those of a machine. They decide
//! nothing unless the policy says `offload = "paying"`, and no guarantee depends on them.

use serde::{Deserialize, Serialize};

/// Why a file of rates is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RatesError {
    /// It is no file of rates.
    #[error("rates: {message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// A figure is negative or not finite.
    #[error("rates: {name} is {value}, which is no cost")]
    Figure {
        /// Which.
        name: &'static str,
        /// The figure.
        value: String,
    },
}

/// What work costs. All figures are finite and not negative where they come from
/// [`from_toml`](Self::from_toml).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Processor time of the trusted side for what it sends and receives.
    pub trusted: TrustedRates,
    /// The way to the worker and back.
    pub link: LinkRates,
    /// The worker's time.
    pub worker: WorkerRates,
    /// Linear layers here, in float.
    pub local: LocalRates,
}

/// Processor time of the trusted side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrustedRates {
    /// Nanoseconds to quantise one element and put it on a link.
    pub send_ns: f64,
    /// Nanoseconds to add a pad to one element.
    pub hide_ns: f64,
    /// Nanoseconds to take one element off a link, unmask and scale it.
    pub take_ns: f64,
    /// Nanoseconds of the check for one element, on either way.
    pub check_ns: f64,
    /// Nanoseconds of the check for one element on the way to the worker, for layers whose check
    /// has a word for each element: all convolutions but plain 1×1 ones.
    pub check_dense_ns: f64,
    /// Microseconds of one round trip, whatever it carries.
    pub round_us: f64,
    /// Microseconds of one layer, whatever its size.
    pub call_us: f64,
}

impl Default for TrustedRates {
    fn default() -> Self {
        Self {
            send_ns: 0.5,
            hide_ns: 0.3,
            take_ns: 0.5,
            check_ns: 0.1,
            check_dense_ns: 0.3,
            round_us: 0.0,
            call_us: 0.0,
        }
    }
}

/// Elapsed time between the two sides. It includes what both spend to copy; the passes that hide
/// and check come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkRates {
    /// Nanoseconds of one byte to the worker.
    pub up_ns: f64,
    /// Nanoseconds of one byte back.
    pub down_ns: f64,
    /// Microseconds of a round trip with next to nothing in it.
    pub round_trip_us: f64,
}

/// Elapsed time of the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerRates {
    /// Nanoseconds of one multiply-accumulate of a 3×3 convolution of stride 1 with 32 channels or more.
    pub conv_ns: f64,
    /// Nanoseconds of one multiply-accumulate of a product or any other convolution.
    pub product_ns: f64,
    /// Nanoseconds of one multiply-accumulate of a depthwise convolution.
    pub depthwise_ns: f64,
    /// Nanoseconds to read one weight; bounds layers that use each weight a few times only.
    pub weight_ns: f64,
    /// Microseconds of one layer, whatever its size.
    pub call_us: f64,
}

/// Time of a linear layer here, in float.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LocalRates {
    /// Nanoseconds of one multiply-accumulate of a convolution larger than 1×1 with 14×14 outputs a channel or fewer;
    /// an engine that lays patches side by side slows down where they leave the cache, hence four figures.
    pub conv_ns: f64,
    /// The same for 56×56. In between, linear in the logarithm of the outputs.
    pub conv_56_ns: f64,
    /// The same for 112×112.
    pub conv_112_ns: f64,
    /// The same for 224×224 and more.
    pub conv_224_ns: f64,
    /// Nanoseconds of one multiply-accumulate of a product or a 1×1 convolution.
    pub product_ns: f64,
    /// Nanoseconds of one multiply-accumulate of a depthwise convolution, which is bound by memory.
    pub depthwise_ns: f64,
    /// Nanoseconds to read one weight; bounds layers that use each weight a few times only.
    pub weight_ns: f64,
}

impl Default for LocalRates {
    fn default() -> Self {
        Self {
            conv_ns: 0.02,
            conv_56_ns: 0.02,
            conv_112_ns: 0.02,
            conv_224_ns: 0.02,
            product_ns: 0.02,
            depthwise_ns: 0.15,
            weight_ns: 0.0,
        }
    }
}

impl LocalRates {
    /// Nanoseconds of one multiply-accumulate of a convolution larger than 1×1 with so many outputs a channel.
    pub(super) fn conv_ns_at(&self, outputs: usize) -> f64 {
        let known = [
            (14.0, self.conv_ns),
            (56.0, self.conv_56_ns),
            (112.0, self.conv_112_ns),
            (224.0, self.conv_224_ns),
        ];
        let side = (outputs.max(1) as f64).sqrt();
        let Some(above) = known.iter().position(|(at, _)| side <= *at) else {
            return self.conv_224_ns;
        };
        let ((low, from), (high, to)) = (known[above.saturating_sub(1)], known[above]);
        if above == 0 {
            return to;
        }
        let part = (side / low).ln() / (high / low).ln();
        from + part * (to - from)
    }
}

impl Rates {
    /// Reads rates from TOML: tables `trusted`, `link`, `worker` and `local`, keys as the fields
    /// with hyphens. What is missing has its default.
    ///
    /// # Errors
    /// [`RatesError`] where the text is none, has unknown keys, or a figure is no cost.
    pub fn from_toml(text: &str) -> Result<Self, RatesError> {
        let syntax = |message: String| RatesError::Syntax {
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let rates: Self = toml::from_str(text).map_err(|err| syntax(err.to_string()))?;
        match rates
            .figures()
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            None => Ok(rates),
            Some((name, value)) => Err(RatesError::Figure {
                name,
                value: value.to_string(),
            }),
        }
    }

    /// Every figure with its name, as in the file.
    pub fn figures(&self) -> [(&'static str, f64); 22] {
        let Self {
            trusted,
            link,
            worker,
            local,
        } = self;
        [
            ("trusted.send-ns", trusted.send_ns),
            ("trusted.hide-ns", trusted.hide_ns),
            ("trusted.take-ns", trusted.take_ns),
            ("trusted.check-ns", trusted.check_ns),
            ("trusted.check-dense-ns", trusted.check_dense_ns),
            ("trusted.round-us", trusted.round_us),
            ("trusted.call-us", trusted.call_us),
            ("link.up-ns", link.up_ns),
            ("link.down-ns", link.down_ns),
            ("link.round-trip-us", link.round_trip_us),
            ("worker.conv-ns", worker.conv_ns),
            ("worker.product-ns", worker.product_ns),
            ("worker.depthwise-ns", worker.depthwise_ns),
            ("worker.weight-ns", worker.weight_ns),
            ("worker.call-us", worker.call_us),
            ("local.conv-ns", local.conv_ns),
            ("local.conv-56-ns", local.conv_56_ns),
            ("local.conv-112-ns", local.conv_112_ns),
            ("local.conv-224-ns", local.conv_224_ns),
            ("local.product-ns", local.product_ns),
            ("local.depthwise-ns", local.depthwise_ns),
            ("local.weight-ns", local.weight_ns),
        ]
    }

    /// The figures as TOML that [`from_toml`](Self::from_toml) reads.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut table = "";
        for (name, value) in self.figures() {
            let (of, key) = name.split_once('.').unwrap_or(("", name));
            if of != table {
                let gap = if table.is_empty() { "" } else { "\n" };
                out.push_str(&format!("{gap}[{of}]\n"));
                table = of;
            }
            out.push_str(&format!("{key} = {value:?}\n"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut rates = Rates::default();
        rates.link.up_ns = 26.7;
        rates.worker.call_us = 1.5e-9;
        assert_eq!(Rates::from_toml(&rates.to_toml()), Ok(rates));
    }

    #[test]
    fn what_is_missing_has_its_default() {
        let rates = Rates::from_toml("[link]\nround-trip-us = 5000.0").unwrap();
        assert_eq!(rates.link.round_trip_us, 5000.0);
        assert_eq!(rates.trusted, TrustedRates::default());
    }

    #[test]
    fn between_two_sizes_of_a_map_lies_a_cost_between_theirs() {
        let local = LocalRates {
            conv_ns: 1.0,
            conv_56_ns: 3.0,
            conv_112_ns: 4.0,
            conv_224_ns: 9.0,
            ..LocalRates::default()
        };
        for (side, expected) in [
            (0, 1.0),
            (7, 1.0),
            (14, 1.0),
            (28, 2.0),
            (56, 3.0),
            (112, 4.0),
        ] {
            assert!(
                (local.conv_ns_at(side * side) - expected).abs() < 1e-9,
                "{side}"
            );
        }
        assert_eq!(local.conv_ns_at(224 * 224), 9.0);
        assert_eq!(local.conv_ns_at(usize::MAX), 9.0);
    }

    #[test]
    fn a_figure_that_is_no_cost_is_named() {
        for value in ["-1.0", "nan", "inf"] {
            let err = Rates::from_toml(&format!("[worker]\ncall-us = {value}")).unwrap_err();
            assert!(err.to_string().contains("worker.call-us"), "{err}");
        }
        let err = Rates::from_toml("[link]\nspeed = 1.0").unwrap_err();
        assert!(err.to_string().contains("speed"), "{err}");
    }
}
