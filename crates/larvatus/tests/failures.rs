//! What a worker and a caller see of inferences that fail on the trusted side.

use std::num::NonZeroUsize;
use std::time::Duration;

use larvatus::error::{InferError, InputError};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::{Policy, Preset};
use larvatus::secret::Entropy;
use larvatus::session::{Session, Settings};
use larvatus::tensor::{Tensor, from_floats};
use larvatus_proto::frame::Request;
use larvatus_proto::machine::Machine;
use larvatus_worker::{Limits, Service, Store, cpu::Cpu};

const NOW: Duration = Duration::ZERO;

/// y = table[argmax(x·I)]·W with a table of two rows for four indices.
const SHORT_TABLE: &[u8] = include_bytes!("../../../testkit/models/short-table.onnx");

fn session(policy: &Policy) -> Session {
    let model = Model::load(SHORT_TABLE, &[]).expect("a model");
    let plan = Plan::new(&model, policy).expect("a plan");
    assert_eq!(plan.round_trips(), 2);
    Session::new(plan, Entropy::new([7; 32]), Settings::default())
}

fn one_hot(index: usize) -> Tensor {
    let mut x = [0.0; 4];
    x[index] = 1.0;
    from_floats(&[1, 4], &x).expect("a tensor")
}

/// Runs until both sides are silent; returns the words of each call.
fn exchange(session: &mut Session) -> Vec<usize> {
    let cpu = Cpu::new(NonZeroUsize::MIN).expect("one thread");
    let mut worker = Service::new(Store::new(Box::new(cpu), Limits::default()), NOW);
    let mut calls = Vec::new();
    loop {
        let mut moved = false;
        while let Some(frame) = session.transmit(NOW) {
            if let Ok(Request::Call { words, .. }) = Request::from_frame(frame.clone()) {
                calls.push(words.len());
            }
            worker.receive(frame, NOW);
            moved = true;
        }
        while let Some(frame) = worker.transmit(NOW) {
            session.receive(frame, NOW);
            moved = true;
        }
        if !moved {
            return calls;
        }
    }
}

#[test]
fn a_failure_of_the_engine_that_depends_on_the_input_changes_no_call() {
    for index in 0..4 {
        let mut session = session(&Preset::Slalom.policy());
        session.begin(vec![one_hot(index)], NOW).expect("taken");
        assert_eq!(exchange(&mut session), [4, 4], "index {index}");
        let (_, result) = session.poll().expect("over");
        match result {
            Ok(_) => assert!(index < 2),
            Err(InferError::Local { .. }) => assert!(index >= 2),
            Err(other) => panic!("{other}"),
        }
    }
}

fn lasting(lifetime: u64) -> Policy {
    let mut policy = Policy::default();
    policy.lifetime = lifetime;
    policy
}

#[test]
fn a_checked_session_begins_no_more_inferences_than_its_lifetime() {
    let mut session = session(&lasting(2));
    for _ in 0..2 {
        session.begin(vec![one_hot(0)], NOW).expect("taken");
    }
    assert_eq!(exchange(&mut session).len(), 4);
    for _ in 0..2 {
        assert!(session.poll().expect("over").1.is_ok());
    }
    let refused = session.begin(vec![one_hot(0)], NOW);
    assert_eq!(refused, Err(InputError::LifetimeOver { lifetime: 2 }));
    assert_eq!((session.pending(), exchange(&mut session)), (0, vec![]));
}

#[test]
fn a_session_without_a_secret_that_lasts_has_no_bound_to_keep() {
    for policy in [
        lasting(1).danger().unverified(),
        lasting(1).with_fresh_checks().unwrap(),
    ] {
        let mut session = session(&policy);
        for _ in 0..2 {
            session.begin(vec![one_hot(0)], NOW).expect("taken");
        }
        exchange(&mut session);
        for _ in 0..2 {
            assert!(session.poll().expect("over").1.is_ok());
        }
    }
}
