//! Curves of a run as a picture: loss and accuracy for each epoch, one line for each run.

use std::fmt::Write;

/// One line.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "callers write it as a literal")]
pub struct Curve {
    /// What it is called.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

const COLOURS: [&str; 6] = [
    "#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b", "#444444",
];

/// A diagram as SVG: 640 by 400, with as much room as the points need. Points that are no numbers are left out.
pub fn svg(title: &str, across: &str, up: &str, curves: &[Curve]) -> String {
    let points = || {
        let all = curves.iter().flat_map(|curve| &curve.points);
        all.filter(|(x, y)| x.is_finite() && y.is_finite())
    };
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match high > low {
            true => (low, high),
            false if low.is_finite() => (low - 0.5, low + 0.5),
            false => (0.0, 1.0),
        }
    };
    let (left, right) = range(points().map(|(x, _)| *x).collect());
    let (bottom, top) = range(points().map(|(_, y)| *y).collect());
    let x_of = |x: f64| 70.0 + 440.0 * (x - left) / (right - left);
    let y_of = |y: f64| 350.0 - 300.0 * (y - bottom) / (top - bottom);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 400\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"640\" height=\"400\" fill=\"white\"/>\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"70\" y=\"28\" font-size=\"15\">{}</text>",
        escape(title)
    );
    for step in 0..=5 {
        let part = f64::from(step) / 5.0;
        let (x, y) = (left + part * (right - left), bottom + part * (top - bottom));
        let _ = writeln!(
            svg,
            "<line x1=\"70\" x2=\"510\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"62\" y=\"{1:.1}\" text-anchor=\"end\">{y:.3}</text>\
             <text x=\"{2:.1}\" y=\"368\" text-anchor=\"middle\">{x:.3}</text>",
            y_of(y),
            y_of(y) + 4.0,
            x_of(x),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"290\" y=\"390\" text-anchor=\"middle\">{}</text><text x=\"70\" y=\"44\">{}</text>",
        escape(across),
        escape(up)
    );
    for (at, curve) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let mut line = String::new();
        for (x, y) in curve
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
        {
            let (x, y) = (x_of(*x), y_of(*y));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"520\" y=\"{}\" fill=\"{colour}\">{}</text>",
            line.trim_end(),
            60 + 18 * at,
            escape(&curve.name)
        );
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
