//! Many lies against the exact modes, and many honest runs: how many pass, how many are refused.
//!
//! `tampers [--lies N] [--honest N] [--seed S]`
//!
//! Each lie is one inference with one altered answer, random or of a kind that an attacker would think of, under `slalom`,
//! `integrity` and `verisplit-exact` by turns, on small networks of every form of layer; secrets are fresh each time. A lie
//! that is accepted is counted and printed. Honest inferences are computed by workers on every instruction set that the CPU has, by
//! turns, with the trusted side on the best one; a refused one is counted and printed. Ends with 1 where there is either.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use larvatus::error::InferError;
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Preset};
use larvatus::secret::Entropy;
use larvatus::session::{Session, Settings};
use larvatus::shares::Apart;
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::isa::Isa;
use larvatus_proto::machine::{Machine, Now};
use larvatus_testkit::adversary::{At, Liar, Lie, Second, Tamper};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::models::{self, Network};
use larvatus_testkit::pair::{converse, honest, honest_on};

const NOW: Now = Duration::ZERO;

#[derive(Parser)]
struct Args {
    /// Inferences with a lie.
    #[arg(long, default_value_t = 100_000)]
    lies: u64,
    /// Inferences without one.
    #[arg(long, default_value_t = 10_000)]
    honest: u64,
    /// Of the choice of lies and inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A network under a preset.
struct Case {
    network: Network,
    preset: Preset,
    plan: Arc<Plan>,
}

impl Case {
    fn workers(&self) -> usize {
        1 + usize::from(self.preset == Preset::VerisplitExact)
    }

    fn session(&self, chance: &mut Chance) -> Session {
        let settings = Settings {
            apart: (self.workers() == 2).then(Apart::danger_believed),
            ..Settings::default()
        };
        let entropy = Entropy::new(chance.bytes());
        Session::new(Arc::clone(&self.plan), entropy, settings)
    }

    /// One inference with these workers.
    fn infer(
        &self,
        chance: &mut Chance,
        input: u64,
        workers: &mut [&mut dyn Machine],
    ) -> Result<Result<Vec<Arc<Tensor>>, InferError>> {
        let mut session = self.session(chance);
        session.begin(self.network.random(input), NOW)?;
        for _ in 0..64 {
            for (line, worker) in workers.iter_mut().enumerate() {
                converse(&mut session.line(line), *worker, NOW);
            }
            if let Some((_, result)) = session.poll() {
                return Ok(result.map(|output| output.tensors));
            }
        }
        anyhow::bail!("{}: no end", self.network.name)
    }
}

fn cases() -> Vec<Case> {
    let presets = [Preset::Slalom, Preset::Integrity, Preset::VerisplitExact];
    let networks = [
        || models::small_cnn(1),
        models::grouped,
        models::attention,
        models::residual,
        models::two_branches,
        models::batched_tokens,
    ];
    let of = |preset: Preset| {
        networks.map(|network| {
            let network = network();
            let plan = network.plan_for(&preset.policy());
            Case {
                network,
                preset,
                plan,
            }
        })
    };
    presets.into_iter().flat_map(of).collect()
}

/// A lie that changes an answer.
fn lie(plan: &Plan, chance: &mut Chance) -> (usize, Tamper) {
    let hidden = plan.policy().hiding() == Hiding::Field;
    let program = plan.worker_model().program();
    let nth = chance.below(program.rounds().len());
    let calls = &program.rounds()[nth].calls;
    let call = chance.below(calls.len());
    let layer = &program.layers()[calls[call].layer.index()];
    let (rows, cols) = layer.shape.output_rows_cols();
    let at = |chance: &mut Chance| At {
        call,
        image: chance.below(layer.images),
        row: chance.below(rows),
        col: chance.below(cols),
    };
    // Not 0 modulo p.
    let number = |chance: &mut Chance| {
        let sign = if chance.happens(500) { 1 } else { -1 };
        let size = match chance.below(3) {
            0 => 1 << chance.below(31),
            1 => 1 + chance.below(8) as i64,
            _ => 1 + chance.below((1 << 31) - 2) as i64,
        };
        sign * size
    };
    let how = match chance.below(12) {
        0..=4 => Tamper::Add(vec![(at(chance), number(chance))]),
        5 => {
            let (one, two) = (at(chance), at(chance));
            let both = number(chance);
            match one == two {
                true => Tamper::Add(vec![(one, both)]),
                false => Tamper::Add(vec![(one, both), (two, -both)]),
            }
        }
        6 => Tamper::Rank {
            call,
            rank: 1 + chance.below(rows.min(cols).min(3)),
        },
        7 => Tamper::FlipBit(at(chance), chance.below(31) as u32),
        8 => Tamper::NotCanonical(
            at(chance),
            [Second::P, Second::PlusP, Second::Largest][chance.below(3)],
        ),
        // Under pads no two rows are equal.
        9 if rows > 1 && hidden => Tamper::SwapRows(0, 1 + chance.below(rows - 1)),
        9 | 10 => [Tamper::Zero, Tamper::Echo, Tamper::Border][chance.below(3)].clone(),
        _ => [Tamper::Truncated(1), Tamper::Longer(1), Tamper::Empty][chance.below(3)].clone(),
    };
    (nth, how)
}

fn bits(tensors: &[Arc<Tensor>]) -> Vec<u32> {
    let all = tensors.iter().filter_map(|tensor| floats(tensor));
    all.flatten().map(|x| x.to_bits()).collect()
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let (cases, mut chance) = (cases(), Chance::new(args.seed));
    let mut passed = 0_u64;
    let began = Instant::now();
    for number in 0..args.lies {
        let case = &cases[number as usize % cases.len()];
        let input = chance.bits();
        let (nth, how) = lie(&case.plan, &mut chance);
        let mut liar = Liar::new(
            case.plan.worker_model(),
            Lie::Answer {
                nth,
                how: how.clone(),
            },
        );
        let mut other = honest();
        let result = if case.workers() == 2 {
            let mut workers: [&mut dyn Machine; 2] = [&mut liar, &mut other];
            workers.rotate_right(chance.below(2));
            case.infer(&mut chance, input, &mut workers)?
        } else {
            case.infer(&mut chance, input, &mut [&mut liar])?
        };
        if result.is_ok() {
            passed += 1;
            println!("accepted: {} {:?}: {how:?}", case.network.name, case.preset);
        }
    }
    println!(
        "{} lies: {passed} accepted; {:.0} s",
        args.lies,
        began.elapsed().as_secs_f64()
    );
    let (mut refused, began) = (0_u64, Instant::now());
    let sets = Isa::available();
    for number in 0..args.honest {
        let case = &cases[number as usize % cases.len()];
        let isa = |chance: &mut Chance| sets[chance.below(sets.len())];
        let (one, two) = (isa(&mut chance), isa(&mut chance));
        let (mut first, mut second) = (honest_on(one), honest_on(two));
        let input = chance.bits();
        let mut workers: [&mut dyn Machine; 2] = [&mut first, &mut second];
        let result = case.infer(&mut chance, input, &mut workers[..case.workers()])?;
        let here = run_exact(&case.plan, case.network.random(input));
        let here = here.context("the network here")?;
        if result.as_ref().map(|tensors| bits(tensors)) != Ok(bits(&here)) {
            refused += 1;
            println!(
                "{} {:?} on {}: {result:?}",
                case.network.name,
                case.preset,
                one.name()
            );
        }
    }
    let names: Vec<&str> = sets.iter().map(|isa| isa.name()).collect();
    println!(
        "{} honest inferences, workers on {}: {refused} refused or other bits; {:.0} s",
        args.honest,
        names.join(", "),
        began.elapsed().as_secs_f64()
    );
    Ok(ExitCode::from(u8::from(passed + refused > 0)))
}
