//! The layout of SEV-SNP reports: what stands where, what must be zero, and which bytes of a TCB
//! version are which part's. Nothing here is verified.
//!
//! Source: AMD 56860 (SEV-SNP ABI), ATTESTATION_REPORT, TCB_VERSION and its form for Turin.

use crate::policy::Product;
use crate::verify::Refused;

/// Bytes of a report.
pub(super) const LENGTH: usize = 1184;

/// Bytes of a report that are signed; the signature follows.
pub(super) const SIGNED: usize = 0x2a0;

/// Where a report names its chip.
pub(super) const CHIP: std::ops::Range<usize> = 0x1a0..0x1e0;

/// A report's fields, as far as a verdict depends on them.
#[derive(Debug)]
pub(super) struct Report {
    /// The generation that the report itself names, which it does from version 3 on.
    pub(super) product: Option<Product>,
    pub(super) guest_svn: u32,
    pub(super) policy: GuestPolicy,
    pub(super) vmpl: u32,
    pub(super) algorithm: u32,
    pub(super) key: KeyInfo,
    pub(super) current_tcb: [u8; 8],
    pub(super) reported_tcb: [u8; 8],
    pub(super) committed_tcb: [u8; 8],
    pub(super) report_data: [u8; 64],
    pub(super) measurement: [u8; 48],
    pub(super) host_data: [u8; 32],
    pub(super) id_key_digest: [u8; 48],
    pub(super) chip_id: [u8; 64],
}

/// The field at an offset that the compiler holds against the length.
fn field<const AT: usize, const N: usize>(report: &[u8; LENGTH]) -> [u8; N] {
    const { assert!(AT + N <= LENGTH) };
    std::array::from_fn(|index| report[AT + index])
}

fn number<const AT: usize>(report: &[u8; LENGTH]) -> u32 {
    u32::from_le_bytes(field::<AT, 4>(report))
}

impl Report {
    /// # Errors
    /// [`Refused::SnpLength`]; [`Refused::SnpReport`] where the version is older than 2, the
    /// processor is none that has SEV-SNP, or what is reserved in this version is not zero. Versions
    /// above 5 are read as 5.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let got = bytes.len();
        let report: &[u8; LENGTH] = bytes.try_into().map_err(|_| Refused::SnpLength { got })?;
        let version = number::<0>(report);
        if version < 2 {
            return Err(Refused::SnpReport);
        }
        let named = version >= 3;
        let vectors = version >= 5;
        let reserved = [
            0x4c..0x50,
            if named { 0x18b } else { 0x188 }..CHIP.start,
            0x1eb..0x1ec,
            0x1ef..0x1f0,
            if vectors { 0x208 } else { 0x1f8 }..SIGNED,
            0x330..LENGTH,
        ];
        for range in reserved {
            let reserved = report.get(range).ok_or(Refused::SnpReport)?;
            if reserved.iter().any(|byte| *byte != 0) {
                return Err(Refused::SnpReport);
            }
        }
        let product = if named {
            let [family, model] = field::<0x188, 2>(report);
            Some(product(family, model).ok_or(Refused::SnpReport)?)
        } else {
            None
        };
        Ok(Self {
            product,
            guest_svn: number::<0x4>(report),
            policy: GuestPolicy(u64::from_le_bytes(field::<0x8, 8>(report))),
            vmpl: number::<0x30>(report),
            algorithm: number::<0x34>(report),
            key: KeyInfo(number::<0x48>(report)),
            current_tcb: field::<0x38, 8>(report),
            reported_tcb: field::<0x180, 8>(report),
            committed_tcb: field::<0x1e0, 8>(report),
            report_data: field::<0x50, 64>(report),
            measurement: field::<0x90, 48>(report),
            host_data: field::<0xc0, 32>(report),
            id_key_digest: field::<0xe0, 48>(report),
            chip_id: field::<{ CHIP.start }, 64>(report),
        })
    }
}

/// The generation of a processor, by CPUID's combined family and model.
fn product(family: u8, model: u8) -> Option<Product> {
    match (family, model) {
        (0x19, 0x00..=0x0f) => Some(Product::Milan),
        (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Product::Genoa),
        (0x1a, 0x00..=0x11) => Some(Product::Turin),
        _ => None,
    }
}

/// What the host may do with the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestPolicy(u64);

impl GuestPolicy {
    pub(super) fn smt(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    pub(super) fn migration(self) -> bool {
        self.0 >> 18 & 1 == 1
    }

    pub(super) fn debug(self) -> bool {
        self.0 >> 19 & 1 == 1
    }
}

/// What signed the report.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyInfo(u32);

impl KeyInfo {
    pub(super) fn masked(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// 0 is a VCEK, 1 a VLEK, 7 none.
    pub(super) fn kind(self) -> u32 {
        self.0 >> 2 & 7
    }
}

/// The versions of a platform's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcb {
    /// Turin alone has it.
    pub(super) fmc: Option<u8>,
    pub(super) bootloader: u8,
    pub(super) tee: u8,
    pub(super) snp: u8,
    pub(super) microcode: u8,
}

impl Tcb {
    pub(super) fn read(bytes: [u8; 8], product: Product) -> Self {
        match product {
            Product::Milan | Product::Genoa => {
                let [bootloader, tee, _, _, _, _, snp, microcode] = bytes;
                Self {
                    fmc: None,
                    bootloader,
                    tee,
                    snp,
                    microcode,
                }
            }
            Product::Turin => {
                let [fmc, bootloader, tee, snp, _, _, _, microcode] = bytes;
                Self {
                    fmc: Some(fmc),
                    bootloader,
                    tee,
                    snp,
                    microcode,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(version: u32, cpuid: [u8; 2]) -> Vec<u8> {
        let mut report = vec![0; LENGTH];
        report[..4].copy_from_slice(&version.to_le_bytes());
        report[0x188..0x18a].copy_from_slice(&cpuid);
        report
    }

    #[test]
    fn versions_name_their_processor_from_three_on() {
        for version in [0, 1] {
            let why = Report::read(&report(version, [0, 0])).unwrap_err();
            assert_eq!(why, Refused::SnpReport);
        }
        assert_eq!(Report::read(&report(2, [0, 0])).unwrap().product, None);
        // What names the processor from version 3 on is reserved in version 2.
        assert!(Report::read(&report(2, [0x19, 1])).is_err());
        for (cpuid, product) in [
            ([0x19, 0x01], Product::Milan),
            ([0x19, 0x11], Product::Genoa),
            ([0x19, 0xa0], Product::Genoa),
            ([0x1a, 0x02], Product::Turin),
            ([0x1a, 0x11], Product::Turin),
        ] {
            for version in [3, 4, 5, 6] {
                let read = Report::read(&report(version, cpuid)).unwrap();
                assert_eq!(read.product, Some(product), "{version} {cpuid:x?}");
            }
        }
        for cpuid in [[0, 0], [0x17, 0x31], [0x19, 0x20], [0x1a, 0x50]] {
            assert!(Report::read(&report(3, cpuid)).is_err(), "{cpuid:x?}");
        }
    }

    #[test]
    fn what_is_reserved_must_be_zero() {
        for version in [2, 3, 5] {
            let cpuid = if version == 2 { [0, 0] } else { [0x19, 1] };
            let good = report(version, cpuid);
            let refused: Vec<usize> = (4..LENGTH)
                .filter(|at| {
                    let mut changed = good.clone();
                    changed[*at] |= 8;
                    Report::read(&changed).is_err()
                })
                .collect();
            let mut expected: Vec<usize> = (0x4c..0x50).collect();
            if version == 2 {
                expected.extend(0x188..0x18b);
            }
            expected.extend(0x18b..0x1a0);
            expected.extend([0x1eb, 0x1ef]);
            if version < 5 {
                expected.extend(0x1f8..0x208);
            }
            expected.extend(0x208..SIGNED);
            expected.extend(0x330..LENGTH);
            assert_eq!(refused, expected, "version {version}");
        }
    }

    #[test]
    fn turin_has_versions_of_its_own_form() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let others = Tcb {
            fmc: None,
            bootloader: 1,
            tee: 2,
            snp: 7,
            microcode: 8,
        };
        assert_eq!(Tcb::read(bytes, Product::Milan), others);
        assert_eq!(Tcb::read(bytes, Product::Genoa), others);
        let turin = Tcb {
            fmc: Some(1),
            bootloader: 2,
            tee: 3,
            snp: 4,
            microcode: 8,
        };
        assert_eq!(Tcb::read(bytes, Product::Turin), turin);
    }
}
