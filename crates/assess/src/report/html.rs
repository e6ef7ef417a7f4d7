//! The page: one file, no scripts, nothing from elsewhere, light and dark.

use std::fmt::Write;

use super::chart::{Chart, Curve, brief};
use super::{Attack, AttackKind, CutReport, Report};
use crate::measure::Stat;
use crate::verdict::{Verdict, breach, legacy_cut};

const STYLE: &str = include_str!("style.css");

/// Text as it may stand in a page.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

/// The page of a report.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let name = safe(&report.model);
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>What {name} lets through</title><style>{STYLE}</style></head><body><main>"
    );
    head(&mut out, report);
    grid(&mut out, report);
    charts(&mut out, report);
    table(&mut out, report);
    host(&mut out, report);
    method(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let [channels, height, width] = report.frame;
    let good = matches!(report.verdict, Verdict::Cut { .. });
    let (class, title) = match good {
        true => ("good", "There is a cut that met the policy"),
        false => ("bad", "No safe cut: keep all inside"),
    };
    let text = match &report.verdict {
        Verdict::Cut { .. } => format!(
            "{}. The head stays inside, too. This says how far these attackers came, not how far any can.",
            capital(&report.sentence())
        ),
        Verdict::NoSafeCut { why } => format!(
            "{}. Exact masks need no safe cut: with them the middle sees nothing, wherever it begins.",
            capital(why)
        ),
    };
    let _ = write!(
        out,
        "<header><p class=\"over\">Leakage assessment</p><h1>{}</h1><p class=\"facts\">{} linear layers · {} cuts{} · \
         {channels}×{height}×{width} images · {} classes · attackers learned from {} images, {} others are scored</p></header>\
         <section class=\"verdict {class}\"><h2>{title}</h2><p>{}</p></section>",
        safe(&report.model),
        report.linears,
        report.cuts.len(),
        if report.cuts_complete {
            ""
        } else {
            " and more"
        },
        report.classes,
        report.train_images,
        report.test_images,
        safe(&text)
    );
}

fn capital(text: &str) -> String {
    let mut signs = text.chars();
    let first = signs.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + signs.as_str()
}

/// Pictures against cuts.
fn grid(out: &mut String, report: &Report) {
    let Some(first) = report.assessed.first() else {
        return;
    };
    if first.shown.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>What comes back</h2><p>Each column is an image that no attacker learned from. Below it, cut by cut, is the \
         best that any attacker made of what crosses; the number is its structural similarity (SSIM), 1 for the same picture.</p>\
         <div class=\"scroll\"><table class=\"grid\"><tr><th>the image</th>",
    );
    for shown in &first.shown {
        let _ = write!(
            out,
            "<td><img alt=\"image of class {}\" src=\"{}\"></td>",
            shown.label, shown.original
        );
    }
    out.push_str("</tr>");
    for (index, cut) in report.assessed.iter().enumerate() {
        let mark = match report.verdict {
            Verdict::Cut { index: chosen } if chosen == index => " class=\"chosen\"",
            _ => "",
        };
        let _ = write!(
            out,
            "<tr{mark}><th>{} of {} layers inside<small>{} cross</small></th>",
            cut.cut.linears,
            report.linears,
            bytes(cut.cut.bytes)
        );
        for shown in &cut.shown {
            let _ = write!(
                out,
                "<td><img alt=\"reconstruction by {0}\" title=\"{0}\" src=\"{1}\"><small>{2:.2}</small></td>",
                shown.by, shown.best, shown.ssim
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div></section>");
}

fn curve<'a>(
    report: &Report,
    name: &'a str,
    colour: &'a str,
    of: impl Fn(&CutReport) -> Option<f64>,
    band: impl Fn(&CutReport) -> Option<(f64, f64)>,
) -> Curve<'a> {
    let each = report.assessed.iter();
    let points = each.map(|cut| Some((cut.cut.linears as f64, of(cut)?)));
    Curve {
        name,
        colour,
        points: points.collect(),
        band: report.assessed.iter().map(band).collect(),
        dashed: false,
    }
}

fn charts(out: &mut String, report: &Report) {
    let mark = report.recommended().map(|cut| cut.cut.linears as f64);
    let depth = report.linears as f64;
    let none = |_: &CutReport| None;
    let of = |kind: AttackKind, pick: fn(&Attack) -> f64| {
        move |cut: &CutReport| cut.attack(kind).map(pick)
    };
    let interval = |kind: AttackKind| {
        move |cut: &CutReport| cut.attack(kind).map(|a| (a.ssim.low, a.ssim.high))
    };
    out.push_str("<section><h2>Over the depth of the cut</h2><div class=\"charts\">");
    let dashed = |curve: Curve<'static>| Curve {
        dashed: true,
        ..curve
    };
    let class_mean = report.baselines.class_mean.map(|stat| stat.mean);
    let charts = [
        Chart {
            title: "How like the image",
            note: "SSIM of the reconstructions; the band is the 95 % interval",
            curves: vec![
                curve(
                    report,
                    "decoder",
                    "var(--a)",
                    of(AttackKind::Decoder, |a| a.ssim.mean),
                    interval(AttackKind::Decoder),
                ),
                curve(
                    report,
                    "inversion",
                    "var(--b)",
                    of(AttackKind::Inversion, |a| a.ssim.mean),
                    interval(AttackKind::Inversion),
                ),
                dashed(curve(
                    report,
                    "worst 1 %",
                    "var(--c)",
                    |cut| {
                        let worst = cut.attacks.iter().map(|a| a.ssim.worst);
                        worst.reduce(f64::max)
                    },
                    none,
                )),
                dashed(curve(
                    report,
                    "a guess that knows the class",
                    "var(--d)",
                    move |_| class_mean,
                    none,
                )),
            ],
            range: Some((0.0, 1.0)),
            line: Some((report.policy.ssim, "policy")),
            mark,
            depth,
            logarithmic: false,
        },
        Chart {
            title: "The paper's test",
            note: "least divergence of a shown map (nats); safe, it says, where it reaches the line of a uniform guess",
            curves: vec![
                curve(
                    report,
                    "least over maps",
                    "var(--a)",
                    |cut| cut.legacy.as_ref().map(|l| l.least.mean),
                    |cut| cut.legacy.as_ref().map(|l| (l.least.low, l.least.high)),
                ),
                dashed(curve(
                    report,
                    "uniform",
                    "var(--d)",
                    |cut| cut.legacy.as_ref().map(|l| l.uniform.mean),
                    none,
                )),
            ],
            range: None,
            line: None,
            mark: legacy_cut(&report.assessed)
                .and_then(|index| report.assessed.get(index))
                .map(|cut| cut.cut.linears as f64),
            depth,
            logarithmic: false,
        },
        Chart {
            title: "Found again, named, linked",
            note: "the part of images found by their reconstruction, of classes named, and the chance to link two of one class",
            curves: vec![
                curve(
                    report,
                    "found among all scored",
                    "var(--a)",
                    |cut| cut.attacks.iter().map(|a| a.found.mean).reduce(f64::max),
                    none,
                ),
                curve(
                    report,
                    "class named",
                    "var(--b)",
                    |cut| cut.labels.map(|s| s.mean),
                    none,
                ),
                curve(report, "linkage", "var(--c)", |cut| cut.linkage, none),
                curve(
                    report,
                    "radius within classes",
                    "var(--d)",
                    |cut| cut.radius,
                    none,
                ),
            ],
            range: Some((0.0, 1.05)),
            line: None,
            mark,
            depth,
            logarithmic: false,
        },
        Chart {
            title: "What it costs",
            note: "bytes that cross, on a logarithmic scale",
            curves: vec![
                curve(
                    report,
                    "bytes that cross",
                    "var(--a)",
                    |cut| Some(cut.cut.bytes as f64),
                    none,
                ),
                curve(
                    report,
                    "bytes of weights inside",
                    "var(--b)",
                    |cut| Some(cut.cut.front_weights as f64),
                    none,
                ),
            ],
            range: None,
            line: None,
            mark,
            depth,
            logarithmic: true,
        },
    ];
    for chart in charts {
        out.push_str(&chart.draw());
    }
    out.push_str("</div></section>");
}

fn stat(stat: Option<&Stat>) -> String {
    match stat {
        None => "–".to_owned(),
        Some(stat) => format!(
            "{} <small>{}–{}, worst {}</small>",
            two(stat.mean),
            two(stat.low),
            two(stat.high),
            two(stat.worst)
        ),
    }
}

fn two(value: f64) -> String {
    if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn table(out: &mut String, report: &Report) {
    out.push_str(
        "<section><h2>In figures</h2><div class=\"scroll\"><table class=\"figures\"><tr><th>cut</th><th>what crosses</th>\
         <th>work inside</th><th>attacker</th><th>SSIM</th><th>PSNR, dB</th><th>found</th><th>class named</th><th>paper's test</th>\
         <th>policy</th></tr>",
    );
    for (index, cut) in report.assessed.iter().enumerate() {
        let chosen = matches!(report.verdict, Verdict::Cut { index: chosen } if chosen == index);
        let rows = cut.attacks.len().max(1);
        let legacy = cut.legacy.as_ref();
        let test = legacy.map_or_else(
            || "–".to_owned(),
            |legacy| {
                let passed = if legacy.margin >= 0.0 {
                    "passed"
                } else {
                    "not passed"
                };
                format!(
                    "{} <small>of {}, {passed}</small>",
                    two(legacy.least.mean),
                    two(legacy.uniform.mean)
                )
            },
        );
        let policy = match breach(cut, report.policy) {
            None => "met".to_owned(),
            Some(why) => format!("<small>{}</small>", safe(&why)),
        };
        for row in 0..rows {
            let attack = cut.attacks.get(row);
            out.push_str(if chosen {
                "<tr class=\"chosen\">"
            } else {
                "<tr>"
            });
            if row == 0 {
                let names = cut
                    .cut
                    .names
                    .iter()
                    .take(3)
                    .map(|name| safe(name))
                    .collect::<Vec<_>>();
                let more = cut.cut.names.len().saturating_sub(3);
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                let _ = write!(
                    out,
                    "<td rowspan=\"{rows}\">{} layers inside</td><td rowspan=\"{rows}\">{} <small>{}{more}</small></td>\
                     <td rowspan=\"{rows}\">{:.0} %<small> + {:.1} % head</small></td>",
                    cut.cut.linears,
                    bytes(cut.cut.bytes),
                    names.join(", "),
                    100.0 * cut.cut.front,
                    100.0 * cut.cut.head
                );
            }
            let kind = attack.map_or_else(
                || "–".to_owned(),
                |attack| {
                    let failed = if attack.failed {
                        " <em>failed to attack</em>"
                    } else {
                        ""
                    };
                    format!(
                        "{}{failed}<small>{}</small>",
                        attack.kind,
                        safe(&attack.budget)
                    )
                },
            );
            let _ = write!(
                out,
                "<td>{kind}</td><td>{}</td><td>{}</td><td>{}</td>",
                stat(attack.map(|a| &a.ssim)),
                stat(attack.map(|a| &a.psnr)),
                attack.map_or_else(
                    || "–".to_owned(),
                    |a| format!(
                        "{:.0} % <small>of {}</small>",
                        100.0 * a.found.mean,
                        a.among
                    )
                ),
            );
            if row == 0 {
                let named = cut
                    .labels
                    .map_or_else(|| "–".to_owned(), |s| format!("{:.0} %", 100.0 * s.mean));
                let _ = write!(
                    out,
                    "<td rowspan=\"{rows}\">{named}</td><td rowspan=\"{rows}\">{test}</td><td rowspan=\"{rows}\">{policy}</td>"
                );
            }
            out.push_str("</tr>");
        }
        if let Some(why) = &cut.not_inverted {
            let _ = write!(
                out,
                "<tr><td colspan=\"10\"><small>not inverted: {}</small></td></tr>",
                safe(why)
            );
        }
        if let Some(fisher) = &cut.fisher {
            let _ = write!(
                out,
                "<tr><td colspan=\"10\"><small>noise of {} ({:.0} % of what crosses): dFIL {}; no <em>unbiased</em> attacker \
                 has a mean square error below {:.2e}; the best here, which are biased, had {}</small></td></tr>",
                two(fisher.noise),
                100.0 * fisher.relative,
                brief(fisher.dfil.mean),
                fisher.least_mse,
                fisher
                    .best_mse
                    .map_or_else(|| "none".to_owned(), |mse| format!("{mse:.2e}"))
            );
        }
    }
    out.push_str("</table></div></section>");
}

fn host(out: &mut String, report: &Report) {
    let part = |stat: Option<Stat>| {
        stat.map_or_else(|| "–".to_owned(), |s| format!("{:.0} %", 100.0 * s.mean))
    };
    let _ = write!(
        out,
        "<section><h2>What the host learns at the other end</h2><p>In the paper's design the host has the scores and only the \
         names of the classes are inside: the largest score is right for <b>{}</b> of these images, and one known image of a \
         class, or the public head, gives its name away. With the head inside, the host has what goes into it; a linear \
         classifier that learned from labelled images of its own names <b>{}</b> of the classes from that. Keeping the head \
         inside hides the scores, not the class.</p></section>",
        part(report.host.output),
        part(report.host.before_head)
    );
}

fn method(out: &mut String, report: &Report) {
    let legacy = match legacy_cut(&report.assessed).and_then(|index| report.assessed.get(index)) {
        None => "at none of these cuts".to_owned(),
        Some(cut) => format!(
            "from {} layers on, where the best attacker here reaches SSIM {:.2}",
            cut.cut.linears,
            cut.best().map_or(0.0, |attack| attack.ssim.mean)
        ),
    };
    let _ = write!(
        out,
        "<section class=\"method\"><h2>How to read this</h2><ul>\
         <li>Figures are means with 95 % intervals; <i>worst</i> is the mean of the one image in a hundred that fares worst, at \
         least one.</li>\
         <li>An attacker that does not reach SSIM 0.8 at the first cut has <i>failed to attack</i>: that it fails at deeper \
         cuts supports nothing.</li>\
         <li>The policy: mean SSIM at most {:.2}, worst at most {:.2}, at most {:.0} % found again, by every attacker, at this \
         cut and all deeper ones.</li>\
         <li>The paper's test (arXiv 1807.00969) looks at one map at a time and says <i>safe</i> {legacy}. It is shown for \
         comparison and decides nothing.</li>\
         <li>Attackers of tomorrow are better. A low score is evidence about these attackers, on these images. The guarantee \
         that does not depend on attackers is masking.</li></ul>\
         <p class=\"digest\">program {} · seed {}</p></section>",
        report.policy.ssim,
        report.policy.ssim_worst,
        100.0 * report.policy.found,
        safe(&report.digest),
        report.settings.seed
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_model_file_cannot_become_markup() {
        assert_eq!(safe("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
