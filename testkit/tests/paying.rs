//! What pays is judged for a whole plan: what layers share counts once, and a plan that saves next
//! to nothing is none.

use std::sync::Arc;

use larvatus::model::linear::StaysLocal;
use larvatus::plan::{Kept, LocalRates, Plan, Rates, TrustedRates};
use larvatus::policy::{Offload, Policy};
use larvatus_testkit::models::{Network, all, attention, small_cnn};

fn paying(network: &Network, rates: Rates) -> Arc<Plan> {
    let mut policy = Policy::default();
    policy.offload = Offload::Paying;
    policy.rates = rates;
    network.plan_for(&policy)
}

/// A multiply-accumulate here takes a nanosecond, everything else nothing.
fn only_work_here() -> Rates {
    Rates {
        trusted: TrustedRates {
            send_ns: 0.0,
            hide_ns: 0.0,
            take_ns: 0.0,
            check_ns: 0.0,
            check_dense_ns: 0.0,
            round_us: 0.0,
            call_us: 0.0,
        },
        local: LocalRates {
            conv_ns: 1.0,
            conv_56_ns: 1.0,
            conv_112_ns: 1.0,
            conv_224_ns: 1.0,
            product_ns: 1.0,
            depthwise_ns: 1.0,
            weight_ns: 0.0,
        },
        ..Rates::default()
    }
}

fn worker_of_speed(ns: f64) -> Rates {
    let mut rates = only_work_here();
    rates.worker.conv_ns = ns;
    rates.worker.product_ns = ns;
    rates.worker.depthwise_ns = ns;
    rates
}

#[test]
fn a_plan_that_saves_a_twentieth_is_none_though_each_layer_pays() {
    for network in all() {
        let count = network.plan_for(&Policy::default()).costs().len();
        let unpaid = |plan: &Plan| {
            let unpaid = |kept: &&Kept| kept.why == StaysLocal::DoesNotPay;
            plan.kept().iter().filter(unpaid).count()
        };
        let plan = paying(&network, worker_of_speed(0.95));
        assert_eq!(plan.round_trips(), 0, "{}", network.name);
        assert_eq!(unpaid(&plan), count, "{}", network.name);
        let plan = paying(&network, worker_of_speed(0.8));
        assert_eq!(plan.costs().len(), count, "{}", network.name);
        assert_eq!(unpaid(&plan), 0, "{}", network.name);
    }
}

/// Each layer of this network has 320 multiply-accumulates and reads 40 elements.
fn queries_keys_and_values_go(rates: Rates) {
    let plan = paying(&attention(), rates);
    assert_eq!(plan.round_trips(), 1);
    assert_eq!(plan.costs().len(), 3, "{:?}", plan.rows());
    let rows = plan.rows();
    let unpaid = |kept: &&Kept| kept.why == StaysLocal::DoesNotPay;
    let unpaid: Vec<&Kept> = plan.kept().iter().filter(unpaid).collect();
    assert_eq!(unpaid.len(), 1);
    assert_eq!(rows.last().map(|row| &row.name), Some(&unpaid[0].name));
    assert_eq!(rows.iter().filter(|row| row.up > 0).count(), 1);
}

#[test]
fn a_round_trip_that_none_pays_alone_pays_for_three() {
    let mut rates = only_work_here();
    rates.link.round_trip_us = 0.5;
    queries_keys_and_values_go(rates);
}

#[test]
fn an_upload_that_none_pays_alone_pays_for_three() {
    let mut rates = only_work_here();
    rates.link.up_ns = 500.0 / 160.0;
    queries_keys_and_values_go(rates);
}

#[test]
fn three_that_do_not_pay_together_stay_though_each_pays_beside_the_others() {
    let mut rates = only_work_here();
    rates.link.round_trip_us = 0.97;
    assert_eq!(paying(&attention(), rates).round_trips(), 0);
}

#[test]
fn a_layer_that_goes_alone_pays_its_own_round_trip() {
    // Five rounds of one call.
    let network = small_cnn(1);
    let all = paying(&network, only_work_here());
    let mut macs: Vec<u64> = all.costs().iter().map(|cost| cost.macs).collect();
    assert_eq!((all.round_trips(), macs.len()), (5, 5));
    macs.sort_unstable();
    let mut rates = only_work_here();
    rates.link.round_trip_us = (macs[2] + macs[3]) as f64 / 2e3;
    let plan = paying(&network, rates);
    let mut gone: Vec<u64> = plan.costs().iter().map(|cost| cost.macs).collect();
    gone.sort_unstable();
    assert_eq!(gone, macs[3..]);
}

#[test]
fn rows_keep_the_order_of_the_graph() {
    let names =
        |plan: &Plan| -> Vec<String> { plan.rows().into_iter().map(|row| row.name).collect() };
    let network = small_cnn(1);
    let all = paying(&network, only_work_here());
    let mut rates = only_work_here();
    rates.local.depthwise_ns = 0.0;
    let some = paying(&network, rates);
    assert_eq!(some.kept().len(), 1);
    assert_eq!(names(&some), names(&all));
}
