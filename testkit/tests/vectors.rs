//! Replays the vector files: layers, adjoints and verdicts that an independent program wrote.
//!
//! Each case runs on every instruction set that this processor has. The format is described at the
//! head of every file; `scripts/oracle.py` writes them and shares no code with what is tested.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larvatus_kernels::WrongLength;
use larvatus_kernels::check::agree;
use larvatus_kernels::field::{Fp, P};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{
    Adjoint, Conv, Linear, MatMul, Shape, ShapeError, Weights, adjoint_with,
};
use larvatus_kernels::reveal::{Claim, RankOne, check_sums_with};

/// What the answer of a case deserves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    NonCanonical { index: usize },
    Length { got: usize, want: usize },
    Product { repetition: usize },
    Shape,
}

/// One case of a file.
struct Case(BTreeMap<String, String>);

impl Case {
    fn text(&self, key: &str) -> &str {
        self.0
            .get(key)
            .unwrap_or_else(|| panic!("{}: no {key}", self.name()))
    }

    fn name(&self) -> &str {
        self.0
            .get("case")
            .map_or("a case without a name", String::as_str)
    }

    /// The words of a field.
    fn words(&self, key: &str) -> Vec<u32> {
        let run = |item: &str| {
            let (word, count) = item.split_once('*').unwrap_or((item, "1"));
            let word = u32::from_str_radix(word, 16).unwrap_or_else(|_| panic!("{key}: {item}"));
            std::iter::repeat_n(
                word,
                count.parse().unwrap_or_else(|_| panic!("{key}: {item}")),
            )
        };
        self.text(key).split_whitespace().flat_map(run).collect()
    }

    fn expect(&self) -> Verdict {
        let words: Vec<&str> = self.text("expect").split_whitespace().collect();
        let number = |text: &str| -> usize {
            let (_, value) = text.split_once('=').unwrap_or_else(|| panic!("{text}"));
            value.parse().unwrap_or_else(|_| panic!("{text}"))
        };
        match words[..] {
            ["accept"] => Verdict::Accept,
            ["reject", "shape"] => Verdict::Shape,
            ["reject", "non-canonical", index] => Verdict::NonCanonical {
                index: number(index),
            },
            ["reject", "length", got, want] => Verdict::Length {
                got: number(got),
                want: number(want),
            },
            ["reject", "product", repetition] => Verdict::Product {
                repetition: number(repetition),
            },
            _ => panic!("{}: no such verdict: {words:?}", self.name()),
        }
    }

    /// The layer; a product with the constant on the left is a 1×1 convolution over its columns.
    fn shape(&self) -> Result<Shape, ShapeError> {
        let mut words = self.text("layer").split_whitespace();
        let kind = words.next().unwrap_or_default();
        let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let list = |key: &str| -> Vec<usize> {
            let number = |n: &str| {
                n.parse()
                    .unwrap_or_else(|_| panic!("{}: {key}", self.name()))
            };
            fields[key].split(',').map(number).collect()
        };
        let one = |key: &str| list(key)[0];
        let pair = |key: &str| [list(key)[0], list(key)[1]];
        match (kind, fields.get("side").copied()) {
            ("conv", None) => Shape::conv(Conv {
                groups: one("groups"),
                in_channels: one("in"),
                out_channels: one("out"),
                input: pair("input"),
                kernel: pair("kernel"),
                stride: pair("stride"),
                dilation: pair("dilation"),
                pad_begin: pair("pads"),
                pad_end: [list("pads")[2], list("pads")[3]],
            }),
            ("matmul", Some("right")) => Shape::matmul(MatMul {
                groups: one("groups"),
                rows: one("rows"),
                inner: one("inner"),
                columns: one("columns"),
            }),
            ("matmul", Some("left")) => Shape::conv(Conv {
                groups: one("groups"),
                in_channels: one("groups") * one("inner"),
                out_channels: one("groups") * one("rows"),
                input: [1, one("columns")],
                kernel: [1, 1],
                stride: [1, 1],
                dilation: [1, 1],
                pad_begin: [0, 0],
                pad_end: [0, 0],
            }),
            other => panic!("{}: no such layer: {other:?}", self.name()),
        }
    }

    fn weights(&self) -> Weights {
        let planes: Vec<Vec<i8>> = (0..)
            .map(|plane| format!("weight.{plane}"))
            .take_while(|key| self.0.contains_key(key))
            .map(|key| {
                let byte = |word: u32| u8::try_from(word).expect("a byte").cast_signed();
                self.words(&key).into_iter().map(byte).collect()
            })
            .collect();
        let shift = if planes.len() > 1 {
            self.text("shift").parse().expect("a shift")
        } else {
            0
        };
        Weights::new(planes, shift).unwrap_or_else(|err| panic!("{}: {err}", self.name()))
    }

    fn repetitions(&self) -> usize {
        (0..)
            .take_while(|r| self.0.contains_key(&format!("outer.{r}")))
            .count()
    }
}

/// A folder's cases with their file names.
fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|err| panic!("{folder:?}: {err}"));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{file}: {err}"));
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for case in lines
            .split(|line| line.trim().is_empty())
            .filter(|case| !case.is_empty())
        {
            let fields = case.iter().map(|line| {
                let (key, value) = line
                    .split_once(':')
                    .unwrap_or_else(|| panic!("{file}: {line}"));
                (key.to_owned(), value.trim().to_owned())
            });
            cases.push((file.clone(), Case(fields.collect())));
        }
    }
    cases
}

fn dot(a: &[u32], x: &[u32]) -> Fp {
    let product = |(a, x): (&u32, &u32)| Fp::from_u64(u64::from(*a)) * Fp::from_u64(u64::from(*x));
    a.iter()
        .zip(x)
        .map(product)
        .fold(Fp::ZERO, |sum, term| sum + term)
}

fn dense(adjoint: Adjoint) -> Vec<u32> {
    match adjoint {
        Adjoint::Dense(a) => a,
        Adjoint::RankOne { outer, inner } => {
            let word = |o: &u32, i: &u32| {
                (Fp::from_u64(u64::from(*o)) * Fp::from_u64(u64::from(*i))).word()
            };
            outer
                .iter()
                .flat_map(|o| inner.iter().map(move |i| word(o, i)))
                .collect()
        }
    }
}

/// Judges the answer as the trusted side does: length, canonical words, the equations.
fn verdict(isa: Isa, case: &Case, shape: &Shape, products: &[Fp]) -> Verdict {
    let (rows, cols) = shape.output_rows_cols();
    let answer = case.words("answer");
    let claim = match Claim::new(&answer, None, rows, cols) {
        Ok(claim) => claim,
        Err(WrongLength { expected, got, .. }) => {
            return Verdict::Length {
                got,
                want: expected,
            };
        }
    };
    let v: Vec<RankOne> = (0..case.repetitions())
        .map(|r| RankOne {
            outer: case.words(&format!("outer.{r}")),
            inner: case.words(&format!("inner.{r}")),
        })
        .collect();
    let found = check_sums_with(
        isa,
        &claim,
        &v.iter().map(RankOne::factors).collect::<Vec<_>>(),
    );
    let beyond = answer.iter().position(|word| *word >= P);
    assert_eq!(
        found.canonical,
        beyond.is_none(),
        "{} on {}",
        case.name(),
        isa.name()
    );
    if let Some(index) = beyond {
        return Verdict::NonCanonical { index };
    }
    let differs = products
        .iter()
        .zip(&found.dots)
        .position(|(product, dot)| product != dot);
    let equal = bool::from(agree(products, &found.dots));
    assert_eq!(
        equal,
        differs.is_none(),
        "{} on {}",
        case.name(),
        isa.name()
    );
    differs.map_or(Verdict::Accept, |repetition| Verdict::Product {
        repetition,
    })
}

/// Layer, adjoint and verdict of a case on one instruction set.
fn replay(isa: Isa, case: &Case, shape: &Shape) {
    let at = format!("{} on {}", case.name(), isa.name());
    let (weights, x) = (case.weights(), case.words("x"));
    let linear = Linear::with_isa(isa, shape.clone(), &weights).expect(&at);
    assert_eq!(x.len(), shape.inputs(), "{at}");
    let mut y = vec![u32::MAX; shape.outputs()];
    linear.apply(&x, &mut y);
    let expect = case.expect();
    assert_eq!(
        y == case.words("answer"),
        expect == Verdict::Accept,
        "the layer of {at}"
    );

    let mut products = Vec::new();
    for r in 0..case.repetitions() {
        let (outer, inner) = (
            case.words(&format!("outer.{r}")),
            case.words(&format!("inner.{r}")),
        );
        let a = dense(adjoint_with(isa, shape, &weights, &outer, &inner).expect(&at));
        let stated = format!("adjoint.{r}");
        if case.0.contains_key(&stated) {
            assert_eq!(a, case.words(&stated), "adjoint {r} of {at}");
        }
        let product = dot(&a, &x);
        assert_eq!(
            [product.word()][..],
            case.words(&format!("product.{r}")),
            "product {r} of {at}"
        );
        products.push(product);
    }
    assert!(!products.is_empty(), "{at} has no check vector");
    assert_eq!(
        verdict(isa, case, shape, &products),
        expect,
        "the verdict of {at}"
    );
}

#[test]
fn every_vector_gets_its_verdict_on_every_instruction_set() {
    let isas = Isa::available();
    for name in ["avx2", "avx512"] {
        if !isas.iter().any(|isa| isa.name() == name) {
            println!("skipped: {name} (this CPU lacks it)");
        }
    }
    let cases = cases();
    let mut verdicts = BTreeMap::new();
    for (file, case) in &cases {
        let kind = case.text("expect").split('=').next().unwrap_or_default();
        *verdicts.entry(kind.to_owned()).or_insert(0_usize) += 1;
        match (case.expect(), case.shape()) {
            (Verdict::Shape, Ok(_)) => panic!("{file}: {} is no layer", case.name()),
            (Verdict::Shape, Err(_)) => {}
            (_, Ok(shape)) => isas.iter().for_each(|isa| replay(*isa, case, &shape)),
            (_, Err(err)) => panic!("{file}: {}: {err}", case.name()),
        }
    }
    println!("{} cases, {verdicts:?}", cases.len());
    // An empty or halved folder proves nothing: every kind of verdict must have stood trial.
    assert_eq!(verdicts.len(), 5, "{verdicts:?}");
    assert!(verdicts.values().all(|count| *count >= 10), "{verdicts:?}");
}
