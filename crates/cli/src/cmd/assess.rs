//! `larvatus assess`: what crosses each cut of a network, and how far attackers get with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use larvatus::policy::Preset;
use larvatus::whole::Whole;
use larvatus_assess::assess::{Event, Settings, State, assess, key};
use larvatus_assess::data::{Data, Frame};
use larvatus_assess::report::{AttackKind, Report, html};
use larvatus_assess::subject::Subject;
use larvatus_assess::verdict::{Policy, breach, legacy_cut};

use super::load;
use crate::Verdict;
use crate::args::Assess as Args;
use crate::input::per_channel;
use crate::table::{bytes, table};

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let settings = settings(args)?;
    let policy = Policy {
        ssim: args.max_ssim,
        ssim_worst: args.max_worst_ssim,
        found: args.max_found,
    };
    let model = load(&args.model, &[])?;
    let whole = Whole::new(&model, &Preset::WholeAudited.policy())?;
    let (mean, std) = (
        per_channel("--mean", &args.picture.mean)?,
        per_channel("--std", &args.picture.std)?,
    );
    let subject = Subject::new(whole.model().clone(), &narrow(&mean), &narrow(&std))?;
    let [channels, height, width] = subject.frame();
    let frame = Frame {
        channels,
        height,
        width,
        crop: args.picture.crop,
    };
    let most = match args.quick {
        true => [512, 64],
        false => [2000, 200],
    };
    let most = [
        args.train_images.unwrap_or(most[0]),
        args.test_images.unwrap_or(most[1]),
    ];
    let extra = args.attack_data.as_deref();
    let data = Data::load(&args.data, extra, frame, most, args.seed)?;
    let kept = beside(&args.report, "state");
    let state = State::open(&kept, &key(&subject, &data, &settings)?, args.resume)?;
    let bar = bar(args.quiet);
    let mut listener = |event: Event<'_>| {
        let [cut, cuts] = event.cut;
        bar.set_length(event.all as u64);
        bar.set_position(event.done as u64);
        bar.set_message(format!("cut {} of {cuts}: {}", cut + 1, event.what));
        true
    };
    let mut report = assess(
        &subject,
        &data,
        &settings,
        policy,
        Some(&state),
        &mut listener,
    )?;
    bar.finish_and_clear();
    let name = args.model.file_stem().map(|name| name.to_string_lossy());
    report.model = name.unwrap_or_default().into_owned();
    write(&args.report, &html::page(&report))?;
    if let Some(path) = &args.json {
        write(path, &report.to_json()?)?;
    }
    state.finish();
    match args.quiet {
        true => println!(
            "{}",
            serde_json::json!({ "verdict": report.verdict, "sentence": report.sentence() })
        ),
        false => show(&report, &args.report),
    }
    Ok(Verdict::Accepted)
}

/// One number where all are the same, as a network of one channel takes it.
fn narrow(values: &[f32]) -> Vec<f32> {
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => vec![*first],
        all => all.to_vec(),
    }
}

fn settings(args: &Args) -> Result<Settings> {
    let mut settings = match args.quick {
        true => Settings::quick(),
        false => Settings::full(),
    };
    settings.attackers.clear();
    for name in &args.attackers {
        let kind = match name.as_str() {
            "decoder" => AttackKind::Decoder,
            "inversion" => AttackKind::Inversion,
            _ => bail!("no attacker {name:?}; there are decoder and inversion"),
        };
        if !settings.attackers.contains(&kind) {
            settings.attackers.push(kind);
        }
    }
    ensure!(
        args.noise.is_finite() && (0.0..=1e6).contains(&args.noise),
        "--noise {} is no part of what crosses",
        args.noise
    );
    settings.noise = args.noise;
    settings.seed = args.seed;
    settings.cuts = args.cuts.unwrap_or(settings.cuts).max(1);
    let steps = &mut settings.decoder.steps;
    *steps = args.decoder_steps.unwrap_or(*steps).max(1);
    let steps = &mut settings.inversion.steps;
    *steps = args.inversion_steps.unwrap_or(*steps).max(1);
    Ok(settings)
}

/// A file's name with something after it.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    path.with_file_name(name)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:44} {bar:32} {pos}/{len} {elapsed}");
    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(report: &Report, page: &Path) {
    let head = [
        "inside",
        "crosses",
        "work",
        "attacker",
        "SSIM",
        "worst",
        "found",
        "named",
        "paper's test",
        "policy",
    ];
    let mut rows = Vec::new();
    for cut in &report.assessed {
        let legacy = cut
            .legacy
            .as_ref()
            .map_or("-", |legacy| match legacy.margin >= 0.0 {
                true => "passed",
                false => "not passed",
            });
        for attack in &cut.attacks {
            let failed = if attack.failed {
                " (failed to attack)"
            } else {
                ""
            };
            rows.push(vec![
                format!("{} layers", cut.cut.linears),
                bytes(cut.cut.bytes),
                format!("{:.0} %", 100.0 * (cut.cut.front + cut.cut.head)),
                format!("{}{failed}", attack.kind),
                format!("{:.2}", attack.ssim.mean),
                format!("{:.2}", attack.ssim.worst),
                format!("{:.0} %", 100.0 * attack.found.mean),
                cut.labels.map_or_else(
                    || "-".to_owned(),
                    |labels| format!("{:.0} %", 100.0 * labels.mean),
                ),
                legacy.to_owned(),
                breach(cut, report.policy)
                    .map_or("met", |_| "not met")
                    .to_owned(),
            ]);
        }
    }
    print!("{}", table(&head, &rows));
    if let Some(cut) = legacy_cut(&report.assessed).and_then(|index| report.assessed.get(index)) {
        println!(
            "the paper's test would cut behind {} layers, where the best attacker reaches SSIM {:.2}",
            cut.cut.linears,
            cut.best().map_or(0.0, |attack| attack.ssim.mean)
        );
    }
    println!("{}", report.sentence());
    println!("report: {}", page.display());
}
