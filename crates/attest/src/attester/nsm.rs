//! Nitro Enclaves: the Nitro Secure Module.
//!
//! The request and the answer are CBOR. The device takes them by an `ioctl`, which is `unsafe` to
//! call; so the device is a trait, and whoever runs in an enclave implements it with
//! `aws-nitro-enclaves-nsm-api`. Tests use a recording.
//!
//! Source: AWS, *Nitro Enclaves: cryptographic attestation*; `nsm_api` requests and answers.

use crate::attester::{AttestError, Attester};
use crate::evidence::Evidence;
use crate::platform::Platform;
use crate::statement::{ReportData, Statement};

/// A Nitro Secure Module.
pub trait NsmDevice: Send + Sync {
    /// The document about this user data: `Request::Attestation` with `user_data`, without nonce and
    /// key.
    ///
    /// # Errors
    /// What the device says.
    fn document(&self, user_data: &ReportData) -> Result<Vec<u8>, String>;
}

/// Has a Nitro Secure Module sign.
#[derive(Debug)]
pub struct Nsm<D> {
    device: D,
}

impl<D: NsmDevice> Nsm<D> {
    /// An attester over a device.
    pub fn new(device: D) -> Self {
        Self { device }
    }
}

impl<D: NsmDevice> Attester for Nsm<D> {
    fn platform(&self) -> Platform {
        Platform::Nitro
    }

    fn attest(&self, statement: &Statement) -> Result<Evidence, AttestError> {
        let document = self.device.document(&statement.report_data());
        let document = document.map_err(|why| AttestError::Nsm { why })?;
        Ok(Evidence::new(Platform::Nitro, *statement, document))
    }
}
