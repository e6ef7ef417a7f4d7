//! Many inferences at once, over links that delay, reorder, lose and repeat.

use std::sync::Arc;
use std::time::Duration;

use larvatus::exact::{FloatNetwork, run_exact};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy};
use larvatus::session::Settings;
use larvatus::tensor::{Tensor, floats};
use larvatus_proto::frame::Request;
use larvatus_testkit::models::{self, Network};
use larvatus_testkit::pair::{Conditions, Pair, Setup, honest};

fn bits(tensors: &[Arc<Tensor>]) -> Vec<Vec<u32>> {
    let bits = |tensor: &Arc<Tensor>| {
        floats(tensor)
            .unwrap()
            .iter()
            .map(|x| x.to_bits())
            .collect()
    };
    tensors.iter().map(bits).collect()
}

fn exact(plan: &Arc<Plan>, network: &Network, seed: u64) -> Vec<Vec<u32>> {
    bits(&run_exact(plan, network.random(seed)).unwrap())
}

#[test]
fn every_network_gives_the_local_integer_answer_bit_for_bit() {
    for network in models::all() {
        let hidden = Policy::default();
        let fresh = Policy::default().with_fresh_checks().unwrap();
        for policy in [hidden.clone().danger().clear_input(), hidden, fresh] {
            let plan = network.plan_for(&policy);
            assert!(
                plan.round_trips() > 0,
                "{}: nothing is offloaded",
                network.name
            );
            let input: Vec<f32> = floats(&network.random(5)[0])
                .unwrap()
                .iter()
                .map(|x| x.abs())
                .collect();
            let output = Pair::honest(&plan).infer(network.tensor(&input)).unwrap();
            let local = run_exact(&plan, network.tensor(&input)).unwrap();
            assert_eq!(
                bits(&output.tensors),
                bits(&local),
                "{} {policy:?}",
                network.name
            );
            assert_eq!(output.round_trips, plan.round_trips(), "{}", network.name);
        }
    }
}

#[test]
fn a_strided_shortcut_reads_the_upload_of_its_neighbour() {
    let network = models::residual();
    let plan = network.plan(Hiding::Field);
    let rounds = plan.worker_model().program().rounds();
    // Pixels sent, of all images and channels. Where nothing else reads the whole tensor, every second
    // pixel of each axis goes out.
    let uploads: Vec<&[usize]> = rounds.iter().map(|round| &*round.uploads).collect();
    let whole = [2 * 3 * 63, 2 * 4 * 63, 2 * 6 * 20, 2 * 3 * 20].map(|words| vec![words]);
    assert_eq!(uploads[..4], whole);
    assert!(uploads[4].iter().all(|words| *words == 2 * 5 * 2));
    assert_eq!(uploads.len(), 5);
    assert_eq!(rounds[1].calls.len(), 2);
    assert_eq!(rounds[2].calls.len(), 2);

    let input = network.random(3);
    let exact = run_exact(&plan, input.clone()).unwrap();
    let model = Model::load(&network.bytes, &[]).unwrap();
    let float = FloatNetwork::new(&model).unwrap().run(input).unwrap();
    let [exact, float] = [&exact, &float].map(|tensors| floats(&tensors[0]).unwrap());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let error = norm(&mut exact.iter().zip(float).map(|(x, y)| x - y));
    assert!(error < 0.02 * norm(&mut float.iter().copied()), "{error}");
}

#[test]
fn eight_inferences_over_a_rough_link_give_the_sequential_answers_within_their_window_of_memory() {
    let network = models::small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let settings = Settings {
        window: 8,
        answer_within: Duration::from_secs(3600),
        retry_after: Some(Duration::from_millis(100)),
        ..Settings::default()
    };
    let expected: Vec<_> = (0..8).map(|seed| exact(&plan, &network, seed)).collect();
    let (mut lost, mut reordered) = (false, false);
    for entropy in 0..12 {
        let setup = Setup {
            settings: settings.clone(),
            conditions: Conditions::ROUGH,
            entropy: [entropy; 32],
            ..Setup::default()
        };
        let mut pair = Pair::new(&plan, honest(), setup);
        let results = pair.run_many((0..8).map(|seed| network.random(seed)).collect());
        for (result, expected) in results.into_iter().zip(&expected) {
            assert_eq!(
                &bits(&result.unwrap().tensors),
                expected,
                "entropy {entropy}"
            );
        }
        assert_eq!(pair.session().pending(), 0);
        let calls: Vec<u64> = pair.sent().iter().filter_map(call).collect();
        lost |= calls.len() > 8 * plan.round_trips();
        reordered |= !answered(&pair).is_sorted();
        // A frame an inference and copies of it: two retries cross at most where 100 ms pass
        // between them and a frame is gone after 42 ms.
        let largest = pair
            .sent()
            .iter()
            .chain(pair.received())
            .map(|f| f.size())
            .max()
            .unwrap();
        assert!(
            pair.peak_under_way() <= 8 * 4 * largest,
            "{} {largest}",
            pair.peak_under_way()
        );
    }
    assert!(
        lost && reordered,
        "the link was not rough: {lost} {reordered}"
    );
}

fn call(frame: &larvatus_proto::frame::Frame) -> Option<u64> {
    match Request::from_frame(frame.clone()) {
        Ok(Request::Call { call, .. }) => Some(call),
        _ => None,
    }
}

fn answered(pair: &Pair<larvatus_worker::Service>) -> Vec<u64> {
    let answers = pair
        .received()
        .iter()
        .filter(|frame| !frame.words.is_empty());
    answers
        .map(|frame| u64::from_le_bytes(frame.head[..8].try_into().unwrap()))
        .collect()
}
