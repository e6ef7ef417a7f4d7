//! Quick versions of the attacks: they must work where theory says they do, and score at chance against the exact modes.

use larvatus::faithful::{Demand, MaskSource, Sharing, Times};
use larvatus::model::Model;
use larvatus::policy::Preset;
use larvatus_lab::bend::Push;
use larvatus_lab::view::Mode;
use larvatus_lab::{average, basis, bend, guess, recover};
use larvatus_testkit::models::small_cnn;

#[test]
fn the_mean_of_frames_is_as_noisy_as_theory_says_and_no_picture_of_exact_pads() {
    let masked = average::masked(8).unwrap();
    for mean in average::run(&masked, &[50, 400], 3).unwrap() {
        let theory = mean.theory.unwrap();
        assert!((mean.psnr - theory).abs() < 0.2, "{} {theory}", mean.psnr);
    }
    let clear = Mode::Exact(Preset::Clear);
    let clear = average::run(&clear, &[10], 3).unwrap();
    assert!(clear[0].correlation > 0.99, "{}", clear[0].correlation);
    for preset in [Preset::Slalom, Preset::VerisplitExact] {
        let exact = average::run(&Mode::Exact(preset), &[400], 3).unwrap();
        // Five standard deviations of the correlation of noise with 37 632 pixels.
        assert!(
            exact[0].correlation.abs() < 0.026,
            "{preset} {}",
            exact[0].correlation
        );
        assert!(
            exact[0].psnr < average::grey() + 0.01,
            "{preset} {}",
            exact[0].psnr
        );
    }
}

#[test]
fn inputs_are_told_apart_as_theory_says_and_not_behind_exact_pads() {
    let (near, far) = (
        guess::Pair::apart_by(1e-3, 1),
        guess::Pair::apart_by(0.5, 2),
    );
    for (pair, times) in [(&near, 8), (&far, 64), (&far, 1024)] {
        let mode = guess::masked(times, MaskSource::Fresh).unwrap();
        let rate = guess::run(&mode, pair, 1000, 5).unwrap();
        let off = rate.deviations(pair.theory(f64::from(times)));
        assert!(off.abs() < 4.5, "B = {times}: {rate:?}, {off} deviations");
    }
    // The grid tells even what differs by a thousandth.
    let coarse = guess::masked(1024, MaskSource::Coarse).unwrap();
    assert!(guess::run(&coarse, &near, 200, 5).unwrap().value() > 0.99);
    for preset in [Preset::Slalom, Preset::VerisplitExact] {
        for pair in [&near, &far] {
            let rate = guess::run(&Mode::Exact(preset), pair, 1500, 5).unwrap();
            assert!(rate.deviations(0.5).abs() < 4.5, "{preset}: {rate:?}");
        }
    }
}

#[test]
fn weights_are_found_from_clear_inputs_and_never_behind_exact_pads() {
    let modes = recover::modes().unwrap();
    let error = |name: &str, inferences| {
        let (_, mode) = modes.iter().find(|(is, _)| is.contains(name)).unwrap();
        let error = recover::run(mode, inferences, 2).unwrap().error;
        println!("{name}, {inferences}: {error:.2e}");
        error
    };
    assert!(error("figure 4 alone", 16) < 1e-4);
    assert!(error("clear", 16) < 1e-4);
    // Masks that are small: not from little, but from much.
    let (few, many) = (error("B = 2", 16), error("B = 2", 6000));
    assert!(few > 0.8 && many < 0.5, "{few} {many}");
    for exact in ["slalom", "verisplit-exact"] {
        let error = error(exact, 600);
        assert!(error > 0.95, "{exact}: {error}");
    }
}

#[test]
fn a_pool_of_masks_gives_the_picture_away_and_fresh_ones_do_not() {
    let pool = basis::run(&basis::masked(1024, Some(4)).unwrap(), 12, 3).unwrap();
    assert_eq!(pool.span, 4);
    assert!(pool.psnr > 30.0, "{}", pool.psnr);
    let fresh = basis::run(&basis::masked(1024, None).unwrap(), 12, 3).unwrap();
    assert!(
        fresh.correlation.abs() < 0.026 && fresh.psnr < 0.0,
        "{fresh:?}"
    );
    let exact = basis::run(&Mode::Exact(Preset::Slalom), 12, 3).unwrap();
    assert!(exact.correlation.abs() < 0.026, "{}", exact.correlation);
    assert!(exact.psnr < average::grey() + 0.01);
}

#[test]
fn a_liar_passes_within_the_tolerance_and_is_caught_beyond() {
    let network = small_cnn(4);
    let model = Model::load(&network.bytes, &[]).unwrap();
    let input = network.random(1).remove(0);
    for masks in [None, Times::new(64)] {
        for push in [Push::Up, Push::Scattered, Push::Class(1)] {
            let bent = bend::run(&model, &input, masks, push, 0.9).unwrap();
            assert_eq!(bent.settled, 5, "{push:?}");
            assert!(
                bent.used > 0.85 && bent.used <= 1.0,
                "{push:?} {}",
                bent.used
            );
            assert!(
                bent.moved > 0.0 && bent.moved < 0.05,
                "{push:?} {}",
                bent.moved
            );
            let caught = bend::run(&model, &input, masks, push, 1.3).unwrap_err();
            assert!(
                format!("{caught:#}").contains("rounding does not explain"),
                "{caught:#}"
            );
        }
    }
}

#[test]
fn shares_in_clear_take_the_word_danger() {
    let times = Times::new(64).unwrap();
    assert!(Demand::new(None, Sharing::TwoWorkers(times), None).is_err());
}
