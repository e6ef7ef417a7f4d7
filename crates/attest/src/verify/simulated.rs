//! What is no TEE: a measurement and data that anybody can write down. For development.

use crate::platform::Platform;
use crate::policy::Simulated;
use crate::verify::Refused;

/// Begins every simulated report, so that nobody takes one for another kind.
pub(crate) const MAGIC: &[u8; 32] = b"SIMULATED: THIS PROVES NOTHING.\n";

#[derive(Debug)]
pub(super) struct Claims {
    pub(super) measurement: [u8; 48],
    pub(super) report_data: [u8; 64],
}

pub(super) fn read(report: &[u8]) -> Result<Claims, Refused> {
    let report: &[u8; 144] = report.try_into().map_err(|_| Refused::SimulatedMalformed)?;
    let (magic, rest) = report.split_at(32);
    if magic != MAGIC {
        return Err(Refused::SimulatedMalformed);
    }
    let mut claims = Claims {
        measurement: [0; 48],
        report_data: [0; 64],
    };
    claims.measurement.copy_from_slice(&rest[..48]);
    claims.report_data.copy_from_slice(&rest[48..]);
    Ok(claims)
}

impl Claims {
    pub(super) fn appraise(&self, policy: &Simulated) -> Result<(), Refused> {
        let named = |image: &crate::policy::SimulatedImage| image.measurement.0 == self.measurement;
        if policy.image.iter().any(named) {
            return Ok(());
        }
        Err(Refused::Measurement {
            platform: Platform::SimulatedNotATee,
            measurement: hex::encode(self.measurement),
        })
    }
}
