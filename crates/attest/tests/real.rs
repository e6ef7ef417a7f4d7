//! Evidence that real machines signed.

mod common;

use common::{any_policy, policy, real, statement, testdata};
use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::statement::UnixTime;
use larvatus_attest::verify::{QuoteFault, Refused, Verifier};
use rustix::time::{ClockId, clock_gettime};

fn verifier() -> Verifier {
    // Long enough for a document that is verified at its own second.
    Verifier::new(any_policy()).unwrap()
}

#[test]
fn all_that_the_crates_ship_verifies_at_its_own_date() {
    let verifier = verifier();
    for real in real() {
        let genuine = verifier.genuine(&real.evidence, real.at);
        let genuine = genuine.unwrap_or_else(|why| panic!("{}: {why}", real.name));
        println!(
            "{:18} {:8} {:.16}…  {}",
            real.name,
            genuine.platform().to_string(),
            genuine.measurement(),
            genuine.level()
        );
        // Evidence about something else is no evidence about us.
        let data = statement().report_data();
        let expected = match genuine.platform() {
            Platform::Nitro => Refused::NitroNoData,
            _ => Refused::OtherData,
        };
        assert_eq!(genuine.says(&data), Err(expected), "{}", real.name);
    }
}

#[test]
fn policies_that_name_the_real_images_accept_them_and_others_do_not() {
    let verifier = verifier();
    let of = |name: &str| {
        let found = real().into_iter().find(|real| real.name == name).unwrap();
        verifier.genuine(&found.evidence, found.at).unwrap()
    };

    let sgx = of("sgx_quote");
    let image = format!("[[sgx.image]]\nmr-enclave = \"{}\"\n", sgx.measurement());
    let why = Refused::QuoteStatus {
        platform: Platform::Sgx,
        status: "ConfigurationAndSWHardeningNeeded".into(),
    };
    assert_eq!(sgx.appraise(&policy(&image)), Err(why));
    let status = "[sgx]\nstatus = [\"ConfigurationAndSWHardeningNeeded\"]\n";
    let why = Refused::QuoteAdvisory {
        platform: Platform::Sgx,
        advisory: "INTEL-SA-00289".into(),
    };
    assert_eq!(sgx.appraise(&policy(&format!("{status}{image}"))), Err(why));
    let advisories = "advisories = [\"INTEL-SA-00289\", \"INTEL-SA-00615\"]\n";
    let lenient = policy(&format!("{status}{advisories}{image}"));
    assert_eq!(sgx.appraise(&lenient), Ok(()));

    for name in ["tdx_quote", "tdx_quote_td15ex"] {
        let tdx = of(name);
        let image = |rtmr: &str| {
            format!(
                "[[tdx.image]]\nmr-td = \"{}\"\nrtmr0 = \"danger-any\"\nrtmr1 = \"danger-any\"\n\
                 rtmr2 = \"{rtmr}\"\n",
                tdx.measurement()
            )
        };
        assert_eq!(
            tdx.appraise(&policy(&image("danger-any"))),
            Ok(()),
            "{name}"
        );
        let why = Refused::ImagePart {
            platform: Platform::Tdx,
            part: "rtmr2",
        };
        let other = policy(&image(&"ab".repeat(48)));
        assert_eq!(tdx.appraise(&other), Err(why), "{name}");
        let platform = Platform::Tdx;
        let unnamed = tdx.appraise(&lenient);
        assert_eq!(unnamed, Err(Refused::PlatformNotNamed { platform }));
    }

    let snp = of("report_milan");
    println!("{}", snp.level());
    let image = |measurement: &str| {
        policy(&format!(
            "[sev-snp]\nminimum-tcb = {{ bootloader = 0, tee = 0, snp = 0, microcode = 0 }}\n\
             [[sev-snp.image]]\nmeasurement = \"{measurement}\"\n"
        ))
    };
    assert_eq!(snp.appraise(&image(&snp.measurement())), Ok(()));

    let nitro = of("nitro_attestation");
    let image = |pcr1: &str| {
        policy(&format!(
            "[[nitro.image]]\npcr0 = \"{}\"\npcr1 = \"{pcr1}\"\npcr2 = \"danger-any\"\n",
            nitro.measurement()
        ))
    };
    assert_eq!(nitro.appraise(&image("danger-any")), Ok(()));
    let other = nitro.appraise(&image(&"ab".repeat(48)));
    assert_eq!(other, Err(Refused::NitroPcr { index: 1 }));
}

#[test]
fn real_evidence_out_of_its_time_or_its_kind_is_refused() {
    let verifier = verifier();
    let of = |name: &str| real().into_iter().find(|real| real.name == name).unwrap();
    let refused =
        |evidence: &Evidence, at: u64| verifier.genuine(evidence, UnixTime(at)).unwrap_err();

    let sgx = of("sgx_quote");
    // After the collateral's thirty days, and before them.
    let expired = Refused::Quote(QuoteFault::TcbInfoExpired);
    assert_eq!(refused(&sgx.evidence, 1_760_000_000), expired);
    assert_eq!(refused(&sgx.evidence, 1_700_000_000), expired);
    let mislabelled = Evidence::new(Platform::Tdx, statement(), testdata("real/sgx_quote"));
    assert_eq!(refused(&mislabelled, sgx.at.0), Refused::CollateralMissing);
    let collateral = testdata("real/sgx_quote_collateral.json");
    let mislabelled = mislabelled.with_collateral(serde_json::from_slice(&collateral).unwrap());
    let said = Platform::Tdx;
    assert_eq!(refused(&mislabelled, sgx.at.0), Refused::QuoteKind { said });
    let crossed = Evidence::new(Platform::Tdx, statement(), testdata("real/tdx_quote"));
    let crossed = crossed.with_collateral(serde_json::from_slice(&collateral).unwrap());
    let why = refused(&crossed, sgx.at.0);
    assert!(matches!(why, Refused::Quote(_)), "{why}");

    // Intel lists no level that is old enough for this platform.
    let quote = testdata("real/tdx_quote_outdated");
    let collateral = testdata("real/tdx_quote_outdated_collateral.json");
    let outdated = Evidence::new(Platform::Tdx, statement(), quote)
        .with_collateral(serde_json::from_slice(&collateral).unwrap());
    let why = refused(&outdated, 1_772_323_200);
    assert_eq!(why, Refused::Quote(QuoteFault::NoTcbLevel));

    // Quotes that ship without collateral: nothing vouches for them.
    for name in ["quote-from-tappd.hex", "tdx-quote.hex"] {
        let text = testdata(&format!("real/{name}"));
        let digits = text.trim_ascii();
        let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
        let quote = hex::decode(digits).unwrap();
        let bare = Evidence::new(Platform::Tdx, statement(), quote);
        assert_eq!(refused(&bare, 1_751_328_000), Refused::CollateralMissing);
    }

    let snp = of("report_milan");
    assert_eq!(refused(&snp.evidence, 2_000_000_000), Refused::VcekExpired);
    assert_eq!(refused(&snp.evidence, 1_600_000_000), Refused::VcekExpired);
    let report = snp.evidence.report().to_vec();
    let bare = Evidence::new(Platform::SevSnp, statement(), report);
    assert_eq!(refused(&bare, snp.at.0), Refused::VcekMissing);
    let turin = bare.clone().with_vcek(testdata("real/vcek_turin.der"));
    assert_eq!(refused(&turin, snp.at.0), Refused::SnpSignature);
    let given = Verifier::new(any_policy()).unwrap();
    let given = given
        .with_vcek(testdata("real/vcek_turin.der"))
        .with_vcek(testdata("real/vcek_milan.der"));
    assert!(given.genuine(&bare, snp.at).is_ok());

    let nitro = of("nitro_attestation");
    assert_eq!(
        refused(&nitro.evidence, 1_900_000_000),
        Refused::NitroExpired
    );
    assert_eq!(
        refused(&nitro.evidence, 1_600_000_000),
        Refused::NitroNotYetValid
    );
    let (limit, age) = (60, 600);
    let stale = refused(&nitro.evidence, nitro.at.0 + 600);
    assert_eq!(stale, Refused::NitroStale { limit, age });
}

/// Time that this thread has computed, in ms: what others do on the machine does not count.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// `cargo test -p larvatus-attest --test real -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let verifier = verifier();
    println!(
        "{:18} {:>8} {:>8} {:>8}  ms of CPU",
        "", "p50", "p99", "max"
    );
    for real in real() {
        let encoded = real.evidence.encode();
        let mut times: Vec<f64> = (0..1000)
            .map(|_| {
                let start = cpu();
                let evidence = Evidence::decode(&encoded).unwrap();
                verifier.genuine(&evidence, real.at).unwrap();
                cpu() - start
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{:18} {:8.2} {:8.2} {:8.2}",
            real.name, times[500], times[990], times[999]
        );
    }
}
