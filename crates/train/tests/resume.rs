//! A session that ends at any step goes on from its checkpoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use larvatus_train::data::Dataset;
use larvatus_train::models::Architecture;
use larvatus_train::ops::read;
use larvatus_train::random::Random;
use larvatus_train::session::{Recipe, Session};

fn data() -> Dataset {
    let mut random = Random::new(1, 1);
    let pixels = (0..300 * 64).map(|_| random.below(256) as u8).collect();
    Dataset::new(
        [1, 8, 8],
        pixels,
        (0..300).map(|at| (at % 3) as u8).collect(),
    )
    .expect("a set")
}

fn session(checkpoint: Option<&Path>) -> Session {
    let recipe = Recipe {
        architecture: Architecture::Vgg,
        width: 2,
        epochs: 2,
        batch: 2,
        rate: 0.05,
        seed: 4,
    };
    Session::new(recipe, &data(), "nobody", None, checkpoint).expect("a session")
}

fn bits(session: &mut Session) -> Vec<u32> {
    let parameters = session.network().parameters().values();
    parameters
        .flat_map(|p| {
            read(p.as_tensor(), |p| {
                p.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            })
            .expect("values")
        })
        .collect()
}

#[test]
fn a_session_that_was_stopped_ends_with_the_same_bits() {
    let data = data();
    let mut whole = session(None);
    whole.train(&data, &data, |_| {}).expect("trained");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.safetensors");
    for stop in [70, 130, 170] {
        let mut stopped = session(Some(&path));
        let mut steps = stopped.epochs().len() * 150 + stopped.step();
        let end = catch_unwind(AssertUnwindSafe(|| {
            stopped.train(&data, &data, |standing| {
                steps += usize::from(standing.step.0 > 0);
                assert!(steps < stop, "stopped");
            })
        }));
        assert!(end.is_err());
    }
    // Steps 100 and 150 were kept.
    let mut rest = session(Some(&path));
    assert_eq!((rest.epochs().len(), rest.step()), (1, 0));
    rest.train(&data, &data, |_| {}).expect("trained");
    assert_eq!(bits(&mut rest), bits(&mut whole));
    std::fs::write(&path, b"nothing").expect("written");
    let recipe = Recipe {
        architecture: Architecture::Vgg,
        width: 2,
        epochs: 2,
        batch: 2,
        rate: 0.05,
        seed: 4,
    };
    let refused = Session::new(recipe, &data, "nobody", None, Some(&path));
    assert!(refused.is_err_and(|error| error.to_string().contains("no checkpoint")));
}
