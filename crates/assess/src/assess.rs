//! The assessment: cuts, attacks and measures, cut by cut, resumable.

use std::path::{Path, PathBuf};

use larvatus_graph::{Cut, TensorId};
use serde::{Deserialize, Serialize};

use crate::attack::decoder::{self, Decoder};
use crate::attack::inversion::{self, Inversion};
use crate::data::{Data, Labelled};
use crate::front::Front;
use crate::measure::features::{Features, linkage, radius, recovered};
use crate::measure::fisher::{Fisher, dfil};
use crate::measure::pictures::{found, mse, psnr, ssim};
use crate::measure::{Stat, legacy};
use crate::report::{
    Attack, AttackKind, Baselines, CutInfo, CutReport, HostView, Report, Shown, portrait,
};
use crate::rng::Rng;
use crate::subject::Subject;
use crate::verdict::{Policy, verdict};
use crate::{AssessError, Result};

/// Most cuts that are listed.
pub const MAX_CUTS: usize = 20_000;
/// Pictures of each cut that a report shows.
const SHOWN: usize = 6;

/// How much is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Cuts that are attacked, spread over the depth of the network.
    pub cuts: usize,
    /// Who attacks.
    pub attackers: Vec<AttackKind>,
    /// Of the trained decoder.
    pub decoder: decoder::Budget,
    /// Of the inversion.
    pub inversion: inversion::Budget,
    /// Images and maps of each that the paper's test looks at.
    pub legacy: [usize; 2],
    /// Deviation of the noise added to what crosses, over the deviation of what crosses; 0 for none.
    pub noise: f64,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Settings {
    /// For an evening's work.
    pub fn full() -> Self {
        Self {
            cuts: 8,
            attackers: vec![AttackKind::Decoder, AttackKind::Inversion],
            decoder: decoder::Budget {
                steps: 500,
                batch: 32,
            },
            inversion: inversion::Budget {
                images: 12,
                steps: 250,
                smooth: 0.02,
            },
            legacy: [24, 48],
            noise: 0.0,
            seed: 1,
        }
    }

    /// For a first look, under two minutes for a small network on two cores.
    pub fn quick() -> Self {
        Self {
            cuts: 4,
            decoder: decoder::Budget {
                steps: 120,
                batch: 16,
            },
            inversion: inversion::Budget {
                images: 4,
                steps: 80,
                smooth: 0.02,
            },
            legacy: [8, 16],
            ..Self::full()
        }
    }
}

/// What goes on.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Which cut, and of how many.
    pub cut: [usize; 2],
    /// Doing what.
    pub what: &'a str,
    /// How far.
    pub done: usize,
    /// Of how much.
    pub all: usize,
}

/// Hears what goes on; false stops.
pub type Listener<'a> = &'a mut dyn FnMut(Event<'_>) -> bool;

/// A folder that keeps what is done until all of it is.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// Opens a folder, made where there is none; what was kept for another assessment is thrown away.
    ///
    /// # Errors
    /// [`AssessError::File`].
    pub fn open(folder: &Path, key: &str, resume: bool) -> Result<Self> {
        let wrong = |source| AssessError::File {
            path: folder.display().to_string(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(wrong)?;
        let header = folder.join("assessment");
        let same = std::fs::read_to_string(&header).is_ok_and(|kept| kept == key);
        if !(same && resume) {
            for index in 0..MAX_CUTS {
                if std::fs::remove_file(folder.join(format!("cut-{index}.json"))).is_err() {
                    break;
                }
            }
            std::fs::write(&header, key).map_err(wrong)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    fn cut(&self, index: usize) -> Option<CutReport> {
        let text = std::fs::read_to_string(self.folder.join(format!("cut-{index}.json"))).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Whole or not at all.
    fn keep(&self, index: usize, cut: &CutReport) -> Result<()> {
        let (new, path) = (
            self.folder.join("new"),
            self.folder.join(format!("cut-{index}.json")),
        );
        let text = serde_json::to_string(cut)?;
        let done = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
        done.map_err(|source| AssessError::File {
            path: path.display().to_string(),
            source,
        })
    }

    /// Throws the folder away.
    pub fn finish(self) {
        // What is left over is in nobody's way.
        let _ = std::fs::remove_dir_all(self.folder);
    }
}

/// What tells one assessment from another, for [`State::open`].
///
/// # Errors
/// [`AssessError::Json`].
pub fn key(subject: &Subject, data: &Data, settings: &Settings) -> Result<String> {
    let sum = |set: &[Labelled]| -> f64 {
        let each = set.iter().map(|one| {
            let pixels: f64 = one.pixels.iter().map(|pixel| f64::from(*pixel)).sum();
            pixels + one.label as f64
        });
        each.enumerate()
            .map(|(at, sum)| (at + 1) as f64 * sum)
            .sum()
    };
    let settings = serde_json::to_string(settings)?;
    let (train, test) = (sum(&data.train), sum(&data.test));
    let digest = subject.model().digest();
    Ok(format!("{digest} {settings} {train} {test}\n"))
}

/// The cuts that are attacked: of those with a linear map in front and something left in the middle, for each depth the one of
/// the fewest bytes, and of these so many, evenly spread with the first and the last.
pub fn chosen(all: &[Cut], head: Option<&Cut>, most: usize) -> Vec<Cut> {
    let before = |cut: &Cut| {
        head.is_none_or(|head| {
            let inside = cut.front().iter().zip(head.front());
            inside.clone().all(|(own, head)| !own || *head) && cut.linears() < head.linears()
        })
    };
    let mut found: Vec<&Cut> = Vec::new();
    for cut in all.iter().filter(|cut| cut.linears() > 0 && before(cut)) {
        match found
            .iter_mut()
            .find(|known| known.linears() == cut.linears())
        {
            None => found.push(cut),
            Some(known) if cut.bytes() < known.bytes() => *known = cut,
            Some(_) => {}
        }
    }
    found.sort_by_key(|cut| cut.linears());
    let count = most.clamp(1, found.len().max(1));
    let pick = |at: usize| match count {
        1 => 0,
        _ => at * (found.len() - 1) / (count - 1),
    };
    let picked = (0..count).filter_map(|at| found.get(pick(at)));
    picked.map(|cut| Cut::clone(cut)).collect()
}

/// Assesses a network.
///
/// # Errors
/// [`AssessError`]; what was done until then is in `state`.
pub fn assess(
    subject: &Subject,
    data: &Data,
    settings: &Settings,
    policy: Policy,
    state: Option<&State>,
    listener: Listener<'_>,
) -> Result<Report> {
    let graph = subject.model().graph();
    let cuts = graph.cuts(MAX_CUTS);
    let head = graph.head();
    let picked = chosen(&cuts.all, head.as_ref(), settings.cuts);
    if picked.is_empty() {
        return Err(AssessError::Network(
            "is too small to be cut: no linear map in front with one in the middle".to_owned(),
        ));
    }
    let info = |cut: &Cut| CutInfo::new(subject, cut, head.as_ref());
    let mut done = Vec::with_capacity(picked.len());
    for (index, cut) in picked.iter().enumerate() {
        let kept = state.and_then(|state| state.cut(index));
        let made = match kept.filter(|kept| kept.cut == info(cut)) {
            Some(kept) => kept,
            None => {
                let mut bench = Bench {
                    subject,
                    data,
                    settings,
                    cut,
                    place: [index, picked.len()],
                    listener: &mut *listener,
                };
                let made = bench.attack(info(cut))?;
                if let Some(state) = state {
                    state.keep(index, &made)?;
                }
                made
            }
        };
        done.push(made);
    }
    let host = host_view(subject, data, head.as_ref())?;
    mark_failures(&mut done);
    let verdict = verdict(&done, policy);
    Ok(Report {
        version: 1,
        model: String::new(),
        digest: subject.model().digest().to_string(),
        frame: subject.frame(),
        classes: subject.classes(),
        linears: graph
            .nodes()
            .iter()
            .filter(|node| matches!(node.op, larvatus_graph::Op::Linear(_)))
            .count(),
        cost: graph.cost(),
        train_images: data.train.len(),
        test_images: data.test.len(),
        settings: settings.clone(),
        policy,
        head: head.as_ref().map(info),
        cuts: cuts.all.iter().map(info).collect(),
        cuts_complete: cuts.complete,
        baselines: baselines(subject, data),
        host,
        assessed: done,
        verdict,
    })
}

/// Whoever does not see through the first cut is no evidence about deeper ones.
fn mark_failures(done: &mut [CutReport]) {
    let weak = |kind: AttackKind, done: &[CutReport]| {
        let first = done.first().and_then(|cut| cut.attack(kind));
        first.is_none_or(|attack| attack.ssim.mean < 0.8)
    };
    for kind in [AttackKind::Decoder, AttackKind::Inversion] {
        let failed = weak(kind, done);
        for cut in done.iter_mut() {
            for attack in cut.attacks.iter_mut().filter(|attack| attack.kind == kind) {
                attack.failed = failed;
            }
        }
    }
}

/// What a guess scores that sees nothing, or the class alone.
fn baselines(subject: &Subject, data: &Data) -> Baselines {
    let (all, classes) = data.means();
    let frame = subject.frame();
    let score = |guess: &dyn Fn(&Labelled) -> Vec<f32>| {
        let each = data
            .test
            .iter()
            .map(|one| ssim(&guess(one), &one.pixels, frame));
        Stat::of(&each.collect::<Vec<_>>(), true)
    };
    Baselines {
        mean: score(&|_| all.clone()),
        class_mean: score(&|one| {
            let own = classes.get(one.label).cloned().flatten();
            own.unwrap_or_else(|| all.clone())
        }),
    }
}

/// What the host learns of labels from what comes out of the middle.
fn host_view(subject: &Subject, data: &Data, head: Option<&Cut>) -> Result<HostView> {
    let tensors = head.map(|head| head.tensors().to_vec()).unwrap_or_default();
    let mut hits = Vec::new();
    let see = |set: &[Labelled], hits: &mut Vec<f64>| -> Result<Vec<Vec<Vec<f32>>>> {
        let each = set.iter().map(|one| {
            let seen = subject.run(&one.pixels, &tensors)?;
            let top =
                (0..seen.scores.len()).max_by(|a, b| seen.scores[*a].total_cmp(&seen.scores[*b]));
            hits.push(f64::from(u8::from(top == Some(one.label))));
            Ok(seen.tensors)
        });
        each.collect()
    };
    let test = see(&data.test, &mut hits)?;
    let mut trained = None;
    if !tensors.is_empty() {
        let train = see(&data.train, &mut Vec::new())?;
        let features = Features::new(&train, &test);
        let labels = |set: &[Labelled]| set.iter().map(|one| one.label).collect::<Vec<_>>();
        let recovered = recovered(
            &features,
            &labels(&data.train),
            &labels(&data.test),
            data.classes(),
        )?;
        trained = recovered.and_then(|hits| Stat::of(&hits, true));
    }
    Ok(HostView {
        output: Stat::of(&hits, true),
        before_head: trained,
    })
}

struct Bench<'a> {
    subject: &'a Subject,
    data: &'a Data,
    settings: &'a Settings,
    cut: &'a Cut,
    place: [usize; 2],
    listener: Listener<'a>,
}

/// What crosses for an image, by tensor.
type Crossing = Vec<Vec<f32>>;

impl Bench<'_> {
    fn tell(&mut self, what: &str, done: usize, all: usize) -> bool {
        (self.listener)(Event {
            cut: self.place,
            what,
            done,
            all,
        })
    }

    /// Runs images up to the cut.
    fn see(&mut self, test: bool) -> Result<(Vec<Crossing>, Vec<Vec<f32>>)> {
        let data = self.data;
        let set = if test { &data.test } else { &data.train };
        let tensors: Vec<TensorId> = self.cut.tensors().to_vec();
        let (mut crossing, mut scores) = (Vec::with_capacity(set.len()), Vec::new());
        for (at, one) in set.iter().enumerate() {
            let seen = self.subject.run(&one.pixels, &tensors)?;
            crossing.push(seen.tensors);
            scores.push(seen.scores);
            if at % 16 == 0 && !self.tell("running images", at, set.len()) {
                return Err(AssessError::Stopped);
            }
        }
        Ok((crossing, scores))
    }

    fn attack(&mut self, cut: CutInfo) -> Result<CutReport> {
        let (subject, data, settings) = (self.subject, self.data, self.settings);
        let (mut train, _) = self.see(false)?;
        let (mut test, scores) = self.see(true)?;
        let geometry: Vec<_> = self
            .cut
            .tensors()
            .iter()
            .map(|id| subject.geometry(*id))
            .collect();
        self.tell("the paper's test", 0, 1);
        let seen = test.iter().zip(&scores).take(settings.legacy[0]);
        let seen: Vec<(&[Vec<f32>], &[f32])> = seen.map(|(t, s)| (&t[..], &s[..])).collect();
        let legacy = legacy::test(subject, &geometry, &seen, settings.legacy[1])?;
        let front =
            match settings.attackers.contains(&AttackKind::Inversion) || settings.noise > 0.0 {
                true => Some(Front::new(subject.model(), self.cut)),
                false => None,
            };
        let why_not = front
            .as_ref()
            .and_then(|front| front.as_ref().err().map(ToString::to_string));
        let front = front.and_then(Result::ok);
        let noise = self.add_noise(&mut train, &mut test);
        self.tell("labels", 0, 1);
        let label = |set: &[Labelled]| set.iter().map(|one| one.label).collect::<Vec<_>>();
        let (known, true_labels) = (label(&data.train), label(&data.test));
        let features = Features::new(&train, &test);
        let labels = recovered(&features, &known, &true_labels, data.classes())?;
        let few = features.test.len().min(300);
        let linkage = linkage(&features.test[..few], &true_labels[..few]);
        let radius = radius(&features.test, &true_labels);
        drop(features);
        let pixels = |set: &'static str| {
            let set = if set == "train" {
                &data.train
            } else {
                &data.test
            };
            set.iter().map(|one| &one.pixels[..]).collect::<Vec<_>>()
        };
        let (learned, pictures) = (pixels("train"), pixels("test"));
        let mut attacks = Vec::new();
        let mut made: Vec<(AttackKind, Vec<Vec<f32>>)> = Vec::new();
        if settings.attackers.contains(&AttackKind::Decoder) {
            let mut decoder = Decoder::new(&geometry, subject.frame(), &train, settings.seed)?;
            let (all, mut step) = (settings.decoder.steps, 0);
            let mut tick = || {
                step += 1;
                self.tell("training a decoder", step, all)
            };
            decoder.train(&train, &learned, settings.decoder, settings.seed, &mut tick)?;
            let pictures_made = decoder.reconstruct(&test)?;
            let budget = format!(
                "{} numbers, {} steps of {} of {} images",
                decoder.parameters(),
                all,
                settings.decoder.batch,
                train.len()
            );
            let scored = score(
                AttackKind::Decoder,
                &pictures_made,
                &pictures,
                subject,
                budget,
            );
            attacks.push(scored.ok_or(AssessError::Diverged(AttackKind::Decoder))?);
            made.push((AttackKind::Decoder, pictures_made));
        }
        drop(train);
        if let Some(front) = &front
            && settings.attackers.contains(&AttackKind::Inversion)
        {
            let count = settings.inversion.images.min(test.len());
            let mut starts = vec![vec![vec![0.5; pictures[0].len()]; count]];
            starts.extend(made.first().map(|(_, made)| made[..count].to_vec()));
            let inversion = Inversion {
                front,
                frame: subject.frame(),
                affine: subject.affine(),
            };
            let (all, mut step) = (settings.inversion.steps * starts.len(), 0);
            let mut tick = || {
                step += 1;
                self.tell("inverting", step, all)
            };
            let found = inversion.run(&test[..count], &starts, settings.inversion, &mut tick)?;
            let budget = format!(
                "{} steps from each of {} starts",
                settings.inversion.steps,
                starts.len()
            );
            let scored = score(AttackKind::Inversion, &found, &pictures, subject, budget);
            attacks.push(scored.ok_or(AssessError::Diverged(AttackKind::Inversion))?);
            made.push((AttackKind::Inversion, found));
        }
        let fisher = match (&front, noise) {
            (Some(front), Some((noise, relative))) => {
                let few = pictures.len().min(8);
                let each = pictures[..few].iter().zip(0..);
                let each = each.map(|(pixels, seed)| dfil(subject, front, pixels, noise, 16, seed));
                let each = each.collect::<Result<Vec<f64>>>()?;
                let least: f64 = each.iter().map(|dfil| 1.0 / dfil.max(1e-12)).sum();
                let errors = attacks.iter().map(|attack| attack.mse);
                Stat::of(&each, true).map(|dfil| Fisher {
                    noise,
                    relative,
                    dfil,
                    least_mse: least / few as f64,
                    best_mse: errors.reduce(f64::min),
                })
            }
            _ => None,
        };
        let frame = subject.frame();
        let shown = (0..pictures.len().min(SHOWN)).map(|at| {
            let tries = made
                .iter()
                .filter_map(|(kind, made)| Some((*kind, made.get(at)?)));
            let best = tries
                .map(|(kind, made)| (kind, made, ssim(made, pictures[at], frame)))
                .max_by(|a, b| a.2.total_cmp(&b.2));
            best.map(|(kind, made, ssim)| Shown {
                label: true_labels[at],
                original: portrait(pictures[at], frame),
                best: portrait(made, frame),
                by: kind,
                ssim,
            })
        });
        Ok(CutReport {
            shown: shown.flatten().collect(),
            cut,
            legacy,
            attacks,
            not_inverted: why_not,
            labels: labels.and_then(|hits| Stat::of(&hits, true)),
            linkage,
            radius,
            fisher,
        })
    }

    /// Adds noise of the settings' deviation; its absolute and relative size.
    fn add_noise(&self, train: &mut [Crossing], test: &mut [Crossing]) -> Option<(f64, f64)> {
        let relative = self.settings.noise;
        if relative <= 0.0 {
            return None;
        }
        let (mut sum, mut square, mut count) = (0.0, 0.0, 0.0_f64);
        for value in test.iter().flatten().flatten() {
            let value = f64::from(*value);
            (sum, square, count) = (sum + value, square + value * value, count + 1.0);
        }
        let mean = sum / count.max(1.0);
        let noise = relative * (square / count.max(1.0) - mean * mean).max(0.0).sqrt();
        let mut rng = Rng::new(self.settings.seed ^ 0x0015e);
        for value in train.iter_mut().chain(test).flatten().flatten() {
            *value += (rng.normal() * noise) as f32;
        }
        (noise > 0.0).then_some((noise, relative))
    }
}

/// What an attacker reached; none where it made what is not finite.
fn score(
    kind: AttackKind,
    made: &[Vec<f32>],
    pictures: &[&[f32]],
    subject: &Subject,
    budget: String,
) -> Option<Attack> {
    let pairs = || made.iter().zip(pictures);
    let each = |of: &dyn Fn(&[f32], &[f32]) -> f64| {
        pairs()
            .map(|(made, picture)| of(made, picture))
            .collect::<Vec<f64>>()
    };
    let ssims = each(&|a, b| ssim(a, b, subject.frame()));
    let errors = each(&mse);
    Some(Attack {
        kind,
        budget,
        failed: false,
        ssim: Stat::of(&ssims, true)?,
        psnr: Stat::of(&each(&psnr), true)?,
        mse: errors.iter().sum::<f64>() / errors.len() as f64,
        found: Stat::of(&found(made, pictures), true)?,
        among: pictures.len(),
    })
}
