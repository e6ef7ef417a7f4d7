//! Calls of one connection and of many that are computed together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use larvatus_kernels::linear::Conv;

use super::*;
use crate::backend::Loaded;
use crate::store::Held;

/// The engine for processors, which notes what it loads and how many calls it gets at a time.
#[derive(Default)]
struct Noted {
    loads: AtomicUsize,
    calls: Mutex<Vec<usize>>,
}

struct Noting(Arc<Noted>, Cpu);

struct NotingModel(Arc<Noted>, Box<dyn Loaded>);

impl Backend for Noting {
    fn name(&self) -> String {
        self.1.name()
    }

    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        self.0.loads.fetch_add(1, Ordering::Relaxed);
        let loaded = self.1.load(model)?;
        Ok(Box::new(NotingModel(Arc::clone(&self.0), loaded)))
    }
}

impl Loaded for NotingModel {
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError> {
        self.1.call(round, words)
    }

    fn call_many(&self, round: u32, requests: &[&[u32]]) -> Result<Vec<Vec<u32>>, BackendError> {
        self.0.calls.lock().unwrap().push(requests.len());
        self.1.call_many(round, requests)
    }

    fn together(&self, round: u32) -> usize {
        self.1.together(round)
    }

    fn bytes(&self) -> u64 {
        self.1.bytes()
    }
}

fn noting(limits: Limits) -> (Arc<Noted>, Arc<Store>) {
    let noted = Arc::new(Noted::default());
    let cpu = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
    let backend = Box::new(Noting(Arc::clone(&noted), cpu));
    (noted, Store::new(backend, limits))
}

/// A 3×3 convolution, then a product.
fn two_rounds() -> WorkerModel {
    let conv = Conv {
        groups: 1,
        in_channels: 32,
        out_channels: 32,
        input: [7, 7],
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad_begin: [1, 1],
        pad_end: [1, 1],
    };
    let product = MatMul {
        groups: 1,
        rows: 1,
        inner: 1568,
        columns: 10,
    };
    let shapes = [Shape::conv(conv).unwrap(), Shape::matmul(product).unwrap()];
    let weights = shapes.each_ref().map(|shape| {
        let plane: Vec<i8> = (0..shape.weights()).map(|i| (i * 37 % 255) as i8).collect();
        Weights::new(vec![plane], 0).unwrap()
    });
    let layers = shapes.map(|shape| LayerSpec {
        shape,
        images: 1,
        planes: 1,
        shift: 0,
    });
    let round = |layer: u32| Round {
        uploads: vec![1568],
        calls: vec![LayerCall {
            layer: LayerId(layer),
            upload: 0,
        }],
    };
    let program = Program::new(Form::Words, layers.to_vec(), vec![round(0), round(1)]).unwrap();
    WorkerModel::new(program, &[&weights[0], &weights[1]]).unwrap()
}

fn words(seed: u32) -> Vec<u32> {
    let word =
        |i: u32| (i.wrapping_mul(2_654_435_761)).wrapping_add(seed.wrapping_mul(40_503)) >> 1;
    (0..1568).map(word).collect()
}

fn ask_for(number: u64, round: u32) -> Frame {
    let words = words(u32::try_from(number).unwrap()).into();
    Request::Call {
        call: number,
        round,
        words,
    }
    .into_frame()
}

/// What the engine answers to one call by itself.
fn alone(model: &WorkerModel, number: u64, round: u32) -> Reply {
    let cpu = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
    let loaded = cpu.load(model).unwrap();
    let words = loaded.call(round, &words(u32::try_from(number).unwrap()));
    Reply::Answer {
        call: number,
        words: words.unwrap().into(),
    }
}

#[test]
fn calls_of_a_connection_that_wait_for_the_same_round_go_together_and_are_answered_in_order() {
    let model = two_rounds();
    let (noted, store) = noting(Limits::default());
    let mut service = greeted(&store);
    ask(&mut service, offer(&model));
    assert_eq!(ask(&mut service, whole(&model)), ready(&model));
    let rounds = [0, 0, 1, 0, 1, 0];
    assert!(
        !service.gathers(),
        "nothing waits that more calls could join"
    );
    for (number, round) in (0..).zip(rounds) {
        service.receive(ask_for(number, round), NOW);
        assert!(service.gathers());
    }
    let right: Vec<Reply> = (0..)
        .zip(rounds)
        .map(|(number, round)| alone(&model, number, round))
        .collect();
    assert_eq!(replies(&mut service), right);
    assert_eq!(*noted.calls.lock().unwrap(), [4, 2]);
    let found = store.find(model.digest()).unwrap();
    assert_eq!((found.batches().calls, found.batches().batches), (6, 2));
}

#[test]
fn a_service_gathers_within_its_limits() {
    let model = two_rounds();
    let limits = Limits {
        calls: 4,
        batch_words: 2 * (1568 + 1568),
        ..Limits::default()
    };
    let (noted, store) = noting(limits);
    let mut service = greeted(&store);
    ask(&mut service, offer(&model));
    ask(&mut service, whole(&model));
    let mut gathered = 0;
    while gathered == 0 || service.gathers() {
        service.receive(ask_for(gathered, 0), NOW);
        gathered += 1;
    }
    assert_eq!(gathered, 4);
    assert_eq!(replies(&mut service).len(), 4);
    assert_eq!(*noted.calls.lock().unwrap(), [2, 2]);
}

#[test]
fn connections_at_once_get_the_answers_that_each_would_get_alone() {
    let model = two_rounds();
    let (noted, store) = noting(Limits::default());
    std::thread::scope(|scope| {
        for connection in 0..4_u64 {
            let (store, model) = (&store, &model);
            scope.spawn(move || {
                let mut service = greeted(store);
                ask(&mut service, offer(model));
                assert_eq!(ask(&mut service, whole(model)), ready(model));
                for turn in 0..20 {
                    let numbers = [0, 1].map(|n| 100 * connection + 2 * turn + n);
                    let round = u32::try_from(turn % 2).unwrap();
                    for number in numbers {
                        service.receive(ask_for(number, round), NOW);
                    }
                    let right = numbers.map(|number| alone(model, number, round));
                    assert_eq!(replies(&mut service), right);
                }
                // Whoever vanishes with calls that wait leaves nothing behind.
                service.receive(ask_for(0, 0), NOW);
                service.disconnected(LinkEnd::Closed, NOW);
                assert!(service.finished());
            });
        }
    });
    assert_eq!(noted.calls.lock().unwrap().iter().sum::<usize>(), 160);
    assert_eq!(store.find(model.digest()).unwrap().batches().calls, 160);
}

#[test]
fn connections_share_one_upload_even_where_all_brought_it() {
    let model = two_rounds();
    let (noted, store) = noting(Limits::default());
    let mut both = [greeted(&store), greeted(&store)];
    for service in &mut both {
        assert_eq!(ask(service, offer(&model)), want(&model, 0));
    }
    assert_eq!(ask(&mut both[0], whole(&model)), ready(&model));
    let held = store.held();
    assert_eq!((held.models, held.uploads), (1, 1));
    assert_eq!(ask(&mut both[1], whole(&model)), ready(&model));
    let mut third = greeted(&store);
    assert_eq!(ask(&mut third, offer(&model)), ready(&model));
    assert_eq!(noted.loads.load(Ordering::Relaxed), 1);
    let once = Held {
        uploads: 0,
        reserved: 0,
        ..held
    };
    assert_eq!(store.held(), once);
    for service in both.iter_mut().chain([&mut third]) {
        service.receive(ask_for(3, 1), NOW);
        assert_eq!(replies(service), [alone(&model, 3, 1)]);
    }
}
