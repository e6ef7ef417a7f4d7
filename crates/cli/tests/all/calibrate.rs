//! `larvatus calibrate`: what it writes is what `plan` reads.

use crate::common::{Folder, TINY};

#[test]
fn measured_rates_predict_a_plan() {
    let here = Folder::new();
    let rates = here.at("rates.toml");
    let ran = here.larvatus(&["calibrate", "--output", &rates, "--json"]);
    let measured = ran.accepted().document();
    let figure = |table: &str, key: &str| {
        let value = measured[table][key].as_f64();
        value.unwrap_or_else(|| panic!("{table}.{key}: {measured}"))
    };
    for (table, key) in [
        ("trusted", "hide-ns"),
        ("link", "round-trip-us"),
        ("worker", "product-ns"),
        ("local", "conv-ns"),
        ("local", "conv-224-ns"),
        ("local", "weight-ns"),
    ] {
        assert!(figure(table, key) > 0.0, "{table}.{key}: {measured}");
    }
    let plan = here.larvatus(&["plan", TINY, "--rates", &rates, "--json"]);
    let plan = plan.accepted().document();
    let predicted = |key: &str| plan["predicted"][key].as_f64().unwrap();
    let trip = figure("link", "round-trip-us") / 1e3;
    let trips = plan["round_trips"].as_f64().unwrap();
    assert!(predicted("latency_p50_ms") >= trips * trip, "{plan}");
    assert!(predicted("local_ms") > 0.0, "{plan}");
}
