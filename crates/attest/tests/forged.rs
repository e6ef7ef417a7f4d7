//! What no real machine would sign for us: evidence of platforms whose keys are known, spoiled in one
//! way each. Every way has its own error.

mod common;

use std::collections::BTreeSet;

use common::amd::{self, Report};
use common::intel::{self, Parts, Spoil};
use common::{NOW, challenge, channel, policy, statement, testdata, verifier};
use larvatus_attest::attester::{Attester, Simulated};
use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::policy::Product;
use larvatus_attest::statement::{
    Challenge, Channel, Exporter, KemPublic, KeyHash, Mailbox, ModelId, Nonce, Release, Statement,
    UnixTime,
};
use larvatus_attest::verify::{QuoteFault, Refused, Roots, TcbPart, Verifier};

/// Name, what the verifier says, and what it should say.
type Case = (&'static str, Refused, Refused);

fn refused(verifier: &Verifier, evidence: &Evidence) -> Refused {
    let verdict = verifier.channel(evidence, challenge(), channel(), NOW);
    verdict.unwrap_err()
}

/// Each case must have its error, and no two cases the same one.
fn hold(cases: Vec<Case>) -> usize {
    let mut seen = BTreeSet::new();
    for (name, got, expected) in &cases {
        assert_eq!(got, expected, "{name}");
        assert!(seen.insert(got.to_string()), "{name}: {got} is another's");
        println!("{name:44} {got}");
    }
    cases.len()
}

const SNP: Platform = Platform::SevSnp;

#[test]
fn good_evidence_is_accepted() {
    let evidence = Report::good(&statement()).evidence(&statement(), "vcek");
    let attested = verifier(amd::POLICY).channel(&evidence, challenge(), channel(), NOW);
    let attested = attested.unwrap();
    assert_eq!(attested.platform(), SNP);
    assert_eq!(attested.statement(), &channel());
    assert!(attested.measurement().starts_with("0707"));

    let required = amd::POLICY.replace("[sev-snp]\n", "[sev-snp]\ncrl = \"required\"\n");
    let listed = verifier(&required).with_amd_crl(testdata("amd/crl.der"));
    assert!(
        listed
            .channel(&evidence, challenge(), channel(), NOW)
            .is_ok()
    );

    let quote = Parts::good(&statement()).evidence(&statement());
    let attested = verifier(intel::POLICY).channel(&quote, challenge(), channel(), NOW);
    assert_eq!(attested.unwrap().platform(), Platform::Sgx);
}

#[test]
fn every_fault_of_an_snp_report_has_its_own_error() {
    let good = || Report::good(&statement());
    let by = |report: Report, vcek: &str, text: &str| {
        refused(&verifier(text), &report.evidence(&statement(), vcek))
    };
    let plain = |report: Report| by(report, "vcek", amd::POLICY);
    let with_vcek = |vcek: &str| by(good(), vcek, amd::POLICY);
    let with_policy = |from: &str, to: &str| {
        assert!(amd::POLICY.contains(from));
        by(good(), "vcek", &amd::POLICY.replace(from, to))
    };
    let with_crl = |file: &str| {
        let evidence = good().evidence(&statement(), "vcek");
        let crl = testdata(&format!("amd/{file}.der"));
        refused(&verifier(amd::POLICY).with_amd_crl(crl), &evidence)
    };
    let required = amd::POLICY.replace("[sev-snp]\n", "[sev-snp]\ncrl = \"required\"\n");
    let raw = |bytes: Vec<u8>| {
        let evidence = Evidence::new(SNP, statement(), bytes);
        refused(
            &verifier(amd::POLICY),
            &evidence.with_vcek(testdata("amd/vcek.der")),
        )
    };
    let mut forged = good().signed();
    forged[0x2a0] ^= 1;
    let policy_bits = |bits: u64| (0x0002_0133u64 | bits).to_le_bytes();
    let image = |extra: &str| by(good(), "vcek", &format!("{}{extra}", amd::POLICY));
    let unknown_issuer = {
        let evidence = good().evidence(&statement(), "vcek");
        let evidence = Evidence::new(SNP, statement(), evidence.report().to_vec());
        refused(
            &verifier(amd::POLICY),
            &evidence.with_vcek(testdata("real/vcek_milan.der")),
        )
    };
    let of_another = {
        let evidence = good().evidence(&statement(), "vcek");
        let crl = testdata("amd/crl_of_another.der");
        refused(&verifier(&required).with_amd_crl(crl), &evidence)
    };
    let too_old = |part, least, got| Refused::SnpTcbTooOld { part, least, got };
    let cases: Vec<Case> = vec![
        (
            "debug on",
            plain(good().with(8, &policy_bits(1 << 19))),
            Refused::Debug { platform: SNP },
        ),
        (
            "wrong measurement",
            plain(good().with(0x90, &[6])),
            Refused::Measurement {
                platform: SNP,
                measurement: format!("06{}ff", "07".repeat(46)),
            },
        ),
        (
            "cut",
            raw(good().signed()[..1183].to_vec()),
            Refused::SnpLength { got: 1183 },
        ),
        (
            "unknown version of the report",
            plain(good().with(0, &[1])),
            Refused::SnpReport,
        ),
        (
            "another algorithm",
            plain(good().with(0x34, &[2])),
            Refused::SnpAlgorithm { got: 2 },
        ),
        (
            "masked key",
            plain(good().with(0x48, &[2])),
            Refused::SnpKeyMasked,
        ),
        (
            "signed by a VLEK",
            plain(good().with(0x48, &[1 << 2])),
            Refused::SnpSigningKey { got: 1 },
        ),
        (
            "no VCEK",
            refused(
                &verifier(amd::POLICY),
                &Evidence::new(SNP, statement(), good().signed()),
            ),
            Refused::VcekMissing,
        ),
        (
            "VCEK that is none",
            refused(
                &verifier(amd::POLICY),
                &Evidence::new(SNP, statement(), good().signed()).with_vcek(vec![0x30, 0]),
            ),
            Refused::VcekMalformed,
        ),
        (
            "VCEK of an unknown issuer",
            unknown_issuer,
            Refused::VcekIssuer,
        ),
        (
            "VCEK signed by somebody",
            with_vcek("vcek_forged"),
            Refused::VcekSignature,
        ),
        (
            "expired VCEK",
            with_vcek("vcek_expired"),
            Refused::VcekExpired,
        ),
        (
            "signing key revoked",
            with_crl("crl_revoked"),
            Refused::VcekRevoked,
        ),
        (
            "revocation list expired",
            with_crl("crl_expired"),
            Refused::CrlExpired,
        ),
        (
            "revocation list forged",
            with_crl("crl_forged"),
            Refused::CrlSignature,
        ),
        (
            "revocation list that is none",
            {
                let evidence = good().evidence(&statement(), "vcek");
                refused(
                    &verifier(amd::POLICY).with_amd_crl(vec![1, 2, 3]),
                    &evidence,
                )
            },
            Refused::CrlMalformed,
        ),
        (
            "another root's revocation list",
            of_another,
            Refused::CrlMissing,
        ),
        (
            "report signed by somebody",
            raw(forged),
            Refused::SnpSignature,
        ),
        (
            "another chip",
            plain(good().with(0x1a0, &[0xff])),
            Refused::SnpChip,
        ),
        (
            "other versions than the VCEK's",
            with_vcek("vcek_new"),
            Refused::SnpTcbMismatch {
                part: TcbPart::Microcode,
                reported: 115,
                certified: 209,
            },
        ),
        (
            "old boot loader",
            with_policy("bootloader = 3", "bootloader = 4"),
            too_old(TcbPart::Bootloader, 4, 3),
        ),
        (
            "old TEE",
            with_policy("tee = 0", "tee = 1"),
            too_old(TcbPart::Tee, 1, 0),
        ),
        (
            "old SNP firmware",
            with_policy("snp = 8", "snp = 9"),
            too_old(TcbPart::Snp, 9, 8),
        ),
        (
            "old microcode",
            with_policy("= 115", "= 116"),
            too_old(TcbPart::Microcode, 116, 115),
        ),
        (
            "firmware may be rolled back",
            plain(good().with(0x1e0, &[2])),
            too_old(TcbPart::Bootloader, 3, 2),
        ),
        (
            "generation not named",
            with_policy("[sev-snp]\n", "[sev-snp]\nproducts = [\"genoa\"]\n"),
            Refused::SnpProduct {
                got: Product::Milan,
            },
        ),
        (
            "chip not named",
            with_policy(
                "[sev-snp]\n",
                &format!("[sev-snp]\nchips = [\"{}\"]\n", "00".repeat(64)),
            ),
            Refused::SnpChipNotNamed,
        ),
        (
            "another privilege level",
            plain(good().with(0x30, &[2])),
            Refused::SnpVmpl {
                expected: 0,
                got: 2,
            },
        ),
        (
            "migration agent",
            plain(good().with(8, &policy_bits(1 << 18))),
            Refused::SnpMigration,
        ),
        (
            "threads of others",
            {
                let text = amd::POLICY.replace("[sev-snp]\n", "[sev-snp]\nallow-smt = false\n");
                by(good().with(8, &policy_bits(1 << 16)), "vcek", &text)
            },
            Refused::SnpSmt,
        ),
        (
            "old guest",
            plain(good().with(4, &[1])),
            Refused::SnpGuestSvn { least: 2, got: 1 },
        ),
        (
            "other host data",
            image(&format!("host-data = \"{}\"\n", "01".repeat(32))),
            Refused::ImagePart {
                platform: SNP,
                part: "host-data",
            },
        ),
        (
            "other identity key",
            image(&format!("id-key-digest = \"{}\"\n", "01".repeat(48))),
            Refused::ImagePart {
                platform: SNP,
                part: "id-key-digest",
            },
        ),
    ];
    assert!(hold(cases) >= 30);

    // The same error for another reason.
    assert_eq!(with_vcek("vcek_no_versions"), Refused::VcekMalformed);
    assert_eq!(with_vcek("vcek_no_chip"), Refused::SnpChip);
    assert_eq!(with_vcek("vcek_other_key"), Refused::SnpSignature);
    assert_eq!(by(good(), "vcek", &required), Refused::CrlMissing);
    let mut reserved = good().signed();
    reserved[1183] = 1;
    assert_eq!(raw(reserved), Refused::SnpReport);
    // From version 3 on a report names its processor.
    let named = |cpuid: [u8; 2]| good().with(0, &[3]).with(0x188, &cpuid);
    let milan = named([0x19, 1]).evidence(&statement(), "vcek");
    let verdict = verifier(amd::POLICY).channel(&milan, challenge(), channel(), NOW);
    assert!(verdict.is_ok());
    assert_eq!(plain(named([0x1a, 2])), Refused::SnpChip);
    assert_eq!(plain(named([0x19, 0x20])), Refused::SnpReport);
}

#[test]
fn every_fault_of_a_quote_has_its_own_error() {
    let by = |parts: Parts, text: &str| refused(&verifier(text), &parts.evidence(&statement()));
    let spoiled = |spoil: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::good(&statement());
        spoil(&mut parts);
        by(parts, intel::POLICY)
    };
    let after = |spoil: Spoil| spoiled(&|parts| parts.spoil = spoil);
    let platform = Platform::Sgx;
    let quote = Refused::Quote;
    let other_root = {
        let roots = Roots::danger_others(
            intel::Makers::get().other_root_der(),
            Product::Milan,
            &testdata("amd/ark.der"),
            &testdata("amd/ask.der"),
        );
        let verifier = Verifier::with_roots(policy(intel::POLICY), roots.unwrap());
        refused(&verifier, &Parts::good(&statement()).evidence(&statement()))
    };
    let by_signer = "[sgx]\n[[sgx.image]]\nmr-signer = \"0808080808080808080808080808080808080808080808080808080808080808\"\nproduct = 77\nminimum-svn = 5\n";
    let with_status = |status: &'static str| spoiled(&move |parts| parts.level(status, &[]));
    let cases: Vec<Case> = vec![
        (
            "debug on",
            spoiled(&|parts| parts.body[48] |= 2),
            Refused::Debug { platform },
        ),
        (
            "wrong measurement",
            spoiled(&|parts| parts.body[64] = 1),
            Refused::Measurement {
                platform,
                measurement: format!("01{}", "09".repeat(31)),
            },
        ),
        (
            "old enclave of the right signer",
            by(Parts::good(&statement()), by_signer),
            Refused::SgxSvn { least: 5, got: 4 },
        ),
        (
            "body changed after signing",
            after(Spoil::Quote(200)),
            quote(QuoteFault::EnclaveSignature),
        ),
        (
            "attestation key of another",
            after(Spoil::AttestationKey),
            quote(QuoteFault::QeReportData),
        ),
        (
            "quoting enclave's report changed",
            after(Spoil::QeReportSignature),
            quote(QuoteFault::QeReportSignature),
        ),
        (
            "another quoting enclave",
            spoiled(&|parts| parts.qe_report[128] ^= 1),
            quote(QuoteFault::QuotingEnclave),
        ),
        (
            "TCB info changed",
            after(Spoil::TcbInfo),
            quote(QuoteFault::TcbInfoSignature),
        ),
        (
            "QE identity changed",
            after(Spoil::QeIdentity),
            quote(QuoteFault::QeIdentitySignature),
        ),
        (
            "TCB info expired",
            spoiled(&|parts| {
                parts.tcb_info["nextUpdate"] = "2025-12-31T00:00:00Z".into();
            }),
            quote(QuoteFault::TcbInfoExpired),
        ),
        (
            "QE identity expired",
            spoiled(&|parts| {
                parts.qe_identity["nextUpdate"] = "2025-12-31T00:00:00Z".into();
            }),
            quote(QuoteFault::QeIdentityExpired),
        ),
        (
            "revocation list expired",
            spoiled(&|parts| parts.crl_until = 2025),
            quote(QuoteFault::CrlExpired),
        ),
        (
            "platform's certificate revoked",
            spoiled(&|parts| {
                parts.revoked_by_platform = vec![3];
            }),
            quote(QuoteFault::CertificateRevoked),
        ),
        (
            "platform revoked",
            with_status("Revoked"),
            quote(QuoteFault::Revoked),
        ),
        (
            "another kind of processor",
            spoiled(&|parts| {
                parts.tcb_info["fmspc"] = "00906ED50001".into();
            }),
            quote(QuoteFault::Fmspc),
        ),
        (
            "older than any level",
            spoiled(&|parts| {
                parts.tcb_info["tcbLevels"][0]["tcb"]["pcesvn"] = 12.into();
            }),
            quote(QuoteFault::NoTcbLevel),
        ),
        ("another root", other_root, quote(QuoteFault::CrlMalformed)),
        (
            "a link of the chain is missing",
            after(Spoil::Chain),
            quote(QuoteFault::Chain),
        ),
        (
            "no quote",
            refused(
                &verifier(intel::POLICY),
                &Parts::good(&statement())
                    .evidence(&statement())
                    .with_report(vec![1; 40]),
            ),
            quote(QuoteFault::Malformed),
        ),
        (
            "no collateral",
            refused(
                &verifier(intel::POLICY),
                &Evidence::new(platform, statement(), vec![1; 40]),
            ),
            Refused::CollateralMissing,
        ),
        (
            "out of date",
            with_status("OutOfDate"),
            Refused::QuoteStatus {
                platform,
                status: "OutOfDate".into(),
            },
        ),
        (
            "needs configuration",
            with_status("ConfigurationNeeded"),
            Refused::QuoteStatus {
                platform,
                status: "ConfigurationNeeded".into(),
            },
        ),
        (
            "needs hardened software",
            with_status("SWHardeningNeeded"),
            Refused::QuoteStatus {
                platform,
                status: "SWHardeningNeeded".into(),
            },
        ),
        (
            "an advisory applies",
            spoiled(&|parts| {
                parts.level("UpToDate", &["INTEL-SA-00001"]);
            }),
            Refused::QuoteAdvisory {
                platform,
                advisory: "INTEL-SA-00001".into(),
            },
        ),
        (
            "old evaluation",
            spoiled(&|parts| {
                parts.tcb_info["tcbEvaluationDataNumber"] = 16.into();
            }),
            Refused::QuoteEvaluation {
                platform,
                least: 17,
                got: 16,
            },
        ),
    ];
    assert!(hold(cases) >= 20);
    // The certificate of whoever signs TCB infos may be revoked, too.
    let signer = spoiled(&|parts| parts.revoked_by_root = vec![4]);
    assert_eq!(signer, quote(QuoteFault::CertificateRevoked));
}

#[test]
fn every_fault_of_a_statement_has_its_own_error() {
    let verifier = verifier(amd::POLICY);
    let evidence = |signed: &Statement, said: &Statement| {
        let report = Report::good(signed).signed();
        Evidence::new(SNP, *said, report).with_vcek(testdata("amd/vcek.der"))
    };
    let about = |statement: Statement| evidence(&statement, &statement);
    let here = channel();
    let own = statement();
    let relayed = Channel {
        exporter: Exporter([9; 32]),
        ..here
    };
    let in_between = Channel {
        key: KeyHash([9; 32]),
        ..here
    };
    let nonce = Nonce([3; 32]);
    let mailbox = Statement::mailbox(
        &Mailbox {
            key: KemPublic([4; 32]),
        },
        nonce,
    );
    let at = |seconds| {
        let verdict = verifier.channel(&about(own), challenge(), here, UnixTime(seconds));
        verdict.unwrap_err()
    };
    let release = |model: u8| {
        let release = Release {
            key: KemPublic([4; 32]),
            model: ModelId([model; 32]),
        };
        about(Statement::release(&release, nonce))
    };
    let verdict = |evidence: &Evidence| refused(&verifier, evidence);
    let simulated = Simulated::new([7; 48]).attest(&own).unwrap();
    let named = policy(&format!(
        "[[simulated-not-a-tee.image]]\nmeasurement = \"{}\"\n",
        "07".repeat(48)
    ));
    let named = Verifier::new(named).unwrap();
    let cases: Vec<Case> = vec![
        (
            "stale nonce",
            verdict(&about(Statement::channel(&here, Nonce([5; 32])))),
            Refused::StaleNonce,
        ),
        (
            "evidence of another key",
            verdict(&about(Statement::channel(&in_between, nonce))),
            Refused::OtherKey {
                expected: here.key,
                got: in_between.key,
            },
        ),
        (
            "relay of genuine evidence",
            verdict(&about(Statement::channel(&relayed, nonce))),
            Refused::OtherConnection,
        ),
        (
            "relay that says it were ours",
            verdict(&evidence(&Statement::channel(&relayed, nonce), &own)),
            Refused::OtherData,
        ),
        (
            "for another purpose",
            verdict(&about(mailbox)),
            Refused::OtherPurpose {
                expected: "channel",
                got: "mailbox",
            },
        ),
        (
            "too late",
            at(NOW.0 + 61),
            Refused::TooLate { limit: 60, age: 61 },
        ),
        ("clock went back", at(NOW.0 - 1), Refused::ClockWentBack),
        (
            "another model",
            {
                let asked = verifier.release(&release(6), challenge(), ModelId([5; 32]), NOW);
                asked.unwrap_err()
            },
            Refused::OtherModel {
                expected: ModelId([5; 32]),
                got: ModelId([6; 32]),
            },
        ),
        (
            "simulated platform",
            verdict(&simulated),
            Refused::PlatformNotNamed {
                platform: Platform::SimulatedNotATee,
            },
        ),
        (
            "simulated platform, another image",
            {
                let other = Simulated::new([8; 48]).attest(&own).unwrap();
                refused(&named, &other)
            },
            Refused::Measurement {
                platform: Platform::SimulatedNotATee,
                measurement: "08".repeat(48),
            },
        ),
        (
            "platform not named",
            refused(&named, &about(own)),
            Refused::PlatformNotNamed { platform: SNP },
        ),
        (
            "simulated report that is none",
            refused(
                &named,
                &Evidence::new(Platform::SimulatedNotATee, own, vec![0; 144]),
            ),
            Refused::SimulatedMalformed,
        ),
    ];
    assert!(hold(cases) >= 12);

    // Every other part of a statement, signed for something else and said to be ours.
    for signed in [
        Statement::channel(&here, Nonce([5; 32])),
        Statement::channel(&in_between, nonce),
        mailbox,
    ] {
        assert_eq!(verdict(&evidence(&signed, &own)), Refused::OtherData);
    }
    assert!(
        verifier
            .channel(&about(own), challenge(), here, UnixTime(NOW.0 + 60))
            .is_ok()
    );
    assert!(named.channel(&simulated, challenge(), here, NOW).is_ok());
    let asked = verifier
        .release(&release(5), challenge(), ModelId([5; 32]), NOW)
        .unwrap();
    assert_eq!(asked.statement().model, ModelId([5; 32]));
    let asked = verifier.mailbox(&about(mailbox), challenge(), NOW).unwrap();
    assert_eq!(asked.statement().key, KemPublic([4; 32]));
    let old = Challenge::new(Nonce([3; 32]), UnixTime(NOW.0 - 61));
    let why = verifier.mailbox(&about(mailbox), old, NOW).unwrap_err();
    assert_eq!(why, Refused::TooLate { limit: 60, age: 61 });
}

#[test]
fn faults_of_a_nitro_document_have_their_own_errors() {
    let verifier = Verifier::new(common::any_policy()).unwrap();
    let document = testdata("real/nitro_attestation.cose");
    let at = UnixTime(1_736_179_625);
    let spoiled = |place: usize| {
        let mut document = document.clone();
        document[place] ^= 1;
        let evidence = Evidence::new(Platform::Nitro, statement(), document);
        verifier.genuine(&evidence, at).unwrap_err()
    };
    let find = |words: &[u8]| {
        document
            .windows(words.len())
            .position(|w| w == words)
            .unwrap()
    };
    let last = document.len() - 1;
    let certificate = find(b"certificate") + 200;
    let root = find(b"cabundle") + 300;
    let registers = find(b"pcrs") + 20;
    let cases: Vec<Case> = vec![
        ("signature changed", spoiled(last), Refused::NitroSignature),
        (
            "certificate changed",
            spoiled(certificate),
            Refused::NitroChain,
        ),
        ("root changed", spoiled(root), Refused::NitroRoot),
        ("not a document", spoiled(0), Refused::NitroMalformed),
    ];
    assert_eq!(hold(cases), 4);
    assert_eq!(spoiled(registers), Refused::NitroSignature);
}
