//! No platform at all.

use crate::attester::{AttestError, Attester};
use crate::evidence::Evidence;
use crate::platform::Platform;
use crate::statement::Statement;
use crate::verify::SIMULATED_MAGIC;

/// Writes down a measurement that the caller names. It proves nothing, and says so in every report;
/// a policy that does not name `simulated-not-a-tee` refuses it.
#[derive(Clone, Debug)]
pub struct Simulated {
    measurement: [u8; 48],
}

impl Simulated {
    /// What claims to have this measurement.
    pub fn new(measurement: [u8; 48]) -> Self {
        Self { measurement }
    }
}

impl Attester for Simulated {
    fn platform(&self) -> Platform {
        Platform::SimulatedNotATee
    }

    fn attest(&self, statement: &Statement) -> Result<Evidence, AttestError> {
        let data = statement.report_data();
        let report = [&SIMULATED_MAGIC[..], &self.measurement, &data.0].concat();
        Ok(Evidence::new(self.platform(), *statement, report))
    }
}
