//! One worker's service, many connections over real sockets.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::policy::Hiding;
use larvatus::tensor::{Tensor, floats};
use larvatus_host::framing::write_frame;
use larvatus_host::{Address, Clock, Link, Listener, Options, serve};
use larvatus_proto::VERSION;
use larvatus_proto::frame::Request;
use larvatus_testkit::models::{self, Network};
use larvatus_testkit::shared::trusted;
use larvatus_worker::{Cpu, Limits, Service, Store};

const SOON: Duration = Duration::from_secs(20);

fn bits(tensors: &[Arc<Tensor>]) -> Vec<u32> {
    let all = tensors.iter().flat_map(|tensor| floats(tensor).unwrap());
    all.map(|x| x.to_bits()).collect()
}

/// Runs inferences over a link and holds each against the network run here.
fn right(plan: &Arc<Plan>, network: &Network, address: &Address, seeds: std::ops::Range<u64>) {
    let link = Link::connect(address, SOON).unwrap();
    let inputs = seeds.clone().map(|seed| network.random(seed)).collect();
    let outputs = trusted(plan, link, inputs);
    assert_eq!(outputs.len(), seeds.clone().count());
    for (output, seed) in outputs.into_iter().zip(seeds) {
        let local = run_exact(plan, network.random(seed)).unwrap();
        assert_eq!(bits(&output.unwrap().tensors), bits(&local), "{seed}");
    }
}

/// A peer that asks until the worker no longer reads, because it reads no answer itself.
fn stuck(plan: &Plan, address: &Address) -> Link {
    let link = Link::connect(address, SOON).unwrap();
    link.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let model = plan.worker_model();
    let say = |request: Request| write_frame(&mut &link, &request.into_frame());
    say(Request::Hello { version: VERSION }).unwrap();
    say(Request::Offer {
        model: model.digest(),
        program: u32::try_from(model.program_bytes()).unwrap(),
        total: model.blob().len() as u64,
    })
    .unwrap();
    let words = model.program().request_words(&model.program().rounds()[0]);
    let ask = |call| {
        say(Request::Call {
            call,
            round: 0,
            words: vec![1; words].into(),
        })
    };
    let asked = (0..1_000_000).take_while(|call| ask(*call).is_ok()).count();
    assert!((1..1_000_000).contains(&asked), "{asked}");
    link
}

/// Ends the server however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn sessions_at_once_share_one_upload_and_one_that_is_stuck_holds_up_nobody() {
    let network = models::small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let cpu = Cpu::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let store = Store::new(Box::new(cpu), Limits::default());
    let path = std::env::temp_dir().join(format!("larvatus-sessions-{}", std::process::id()));
    let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let stop = AtomicBool::new(false);
    let make = |now| Box::new(Service::new(Arc::clone(&store), now)) as Box<_>;
    let options = Options {
        room: 1 << 16,
        ..Options::default()
    };
    let addresses = [Address::Unix(path.clone()), Address::Shared(path)];
    thread::scope(|scope| {
        let server = || serve(&listener, 8, options, Clock::start(), &make, &stop);
        let server = scope.spawn(server);
        let stopping = Stop(&stop);
        right(&plan, &network, &addresses[0], 0..1);
        let held = store.held();
        assert_eq!(held.models, 1);

        let silent = stuck(&plan, &addresses[0]);
        let sessions = (1..5).map(|session: u64| {
            let (plan, network) = (&plan, &network);
            let address = &addresses[usize::from(session.is_multiple_of(2))];
            scope.spawn(move || right(plan, network, address, 8 * session..8 * session + 8))
        });
        let sessions: Vec<_> = sessions.collect();
        for session in sessions {
            session.join().unwrap();
        }
        drop(silent);
        assert_eq!(store.held(), held, "one upload serves all");
        let model = store.find(plan.worker_model().digest()).unwrap();
        let batches = model.batches();
        println!("{batches:?}");
        assert!(
            batches.calls > 32 * plan.round_trips() as u64,
            "{batches:?}"
        );
        drop(stopping);
        assert_eq!(server.join().unwrap().panicked, 0);
    });
}
