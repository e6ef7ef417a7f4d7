//! Curves over the depth of the cut, as SVG that follows the page's colours.

use std::fmt::Write;

/// A curve.
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    /// A colour of the page: `var(--a)`.
    pub(super) colour: &'a str,
    /// Depth and value; nothing where there is none.
    pub(super) points: Vec<Option<(f64, f64)>>,
    /// Lower and upper end of a band around it.
    pub(super) band: Vec<Option<(f64, f64)>>,
    pub(super) dashed: bool,
}

/// A picture of curves.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// What the reader should look for.
    pub(super) note: &'a str,
    pub(super) curves: Vec<Curve<'a>>,
    /// The least and the largest value, where they are fixed.
    pub(super) range: Option<(f64, f64)>,
    /// A line at a value, with its name.
    pub(super) line: Option<(f64, &'a str)>,
    /// Depth of the recommended cut.
    pub(super) mark: Option<f64>,
    /// The largest depth.
    pub(super) depth: f64,
    pub(super) logarithmic: bool,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// A number as briefly as it can be read.
pub(super) fn brief(value: f64) -> String {
    let size = value.abs();
    match () {
        () if size >= 1e6 => format!("{:.1}M", value / 1e6),
        () if size >= 1e4 => format!("{:.0}k", value / 1e3),
        () if size >= 1e3 => format!("{:.1}k", value / 1e3),
        () if size >= 10.0 || value == 0.0 => format!("{value:.0}"),
        () if size >= 1.0 => format!("{value:.1}"),
        () => format!("{value:.2}"),
    }
}

impl Chart<'_> {
    pub(super) fn draw(&self) -> String {
        let value = |y: f64| {
            if self.logarithmic {
                y.max(1.0).log10()
            } else {
                y
            }
        };
        let all = || {
            let points = self.curves.iter().flat_map(|curve| &curve.points);
            let points = points.flatten().map(|point| value(point.1));
            points.chain(self.line.map(|line| value(line.0)))
        };
        let (low, high) = self.range.unwrap_or_else(|| {
            let (low, high) = (
                all().fold(f64::INFINITY, f64::min),
                all().fold(0.0, f64::max),
            );
            let low = if self.logarithmic {
                low.floor()
            } else {
                low.min(0.0)
            };
            (
                low,
                if high > low {
                    high + 0.05 * (high - low)
                } else {
                    low + 1.0
                },
            )
        });
        let x = |depth: f64| LEFT + depth / self.depth.max(1.0) * (WIDTH - LEFT - RIGHT);
        let y = |at: f64| {
            let part = ((value(at) - low) / (high - low)).clamp(-0.02, 1.02);
            HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = format!(
            "<figure class=\"chart\"><figcaption><b>{}</b><span>{}</span></figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title, self.note, self.title
        );
        for step in 0..=4 {
            let at = low + (high - low) * f64::from(step) / 4.0;
            let place = HEIGHT - BOTTOM - f64::from(step) / 4.0 * (HEIGHT - TOP - BOTTOM);
            let label = brief(if self.logarithmic {
                10_f64.powf(at)
            } else {
                at
            });
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                place + 4.0
            );
        }
        let steps = self.depth.clamp(1.0, 8.0) as u32;
        for step in 0..=steps {
            let depth = (self.depth * f64::from(step) / f64::from(steps)).round();
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{depth:.0}</text>",
                x(depth),
                HEIGHT - BOTTOM + 16.0
            );
        }
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">linear layers inside</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 4.0
        );
        if let Some(depth) = self.mark {
            let _ = write!(
                svg,
                "<rect class=\"safe\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <line class=\"mark\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{3:.1}\"/>",
                x(depth),
                WIDTH - RIGHT - x(depth),
                HEIGHT - BOTTOM - TOP,
                HEIGHT - BOTTOM
            );
        }
        if let Some((at, name)) = self.line {
            let _ = write!(
                svg,
                "<line class=\"bar\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{1:.1}\"/>\
                 <text class=\"tick\" x=\"{0}\" y=\"{2:.1}\" text-anchor=\"end\">{name}</text>",
                WIDTH - RIGHT,
                y(at),
                y(at) - 5.0
            );
        }
        for curve in &self.curves {
            self.curve(&mut svg, curve, &x, &y);
        }
        svg.push_str("</svg><div class=\"legend\">");
        for curve in &self.curves {
            let _ = write!(
                svg,
                "<span><i style=\"background:{}\"></i>{}</span>",
                curve.colour, curve.name
            );
        }
        svg.push_str("</div></figure>");
        svg
    }

    fn curve(
        &self,
        svg: &mut String,
        curve: &Curve<'_>,
        x: &dyn Fn(f64) -> f64,
        y: &dyn Fn(f64) -> f64,
    ) {
        let points: Vec<(f64, f64)> = curve.points.iter().flatten().copied().collect();
        let both = curve.points.iter().zip(&curve.band);
        let band: Vec<(f64, f64, f64)> = both
            .filter_map(|(point, band)| {
                Some((point.as_ref()?.0, band.as_ref()?.0, band.as_ref()?.1))
            })
            .collect();
        if band.len() > 1 {
            let there = band.iter().map(|(at, _, high)| (x(*at), y(*high)));
            let back = band.iter().rev().map(|(at, low, _)| (x(*at), y(*low)));
            let path: Vec<String> = there
                .chain(back)
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ = write!(
                svg,
                "<polygon points=\"{}\" fill=\"{}\" opacity=\".16\"/>",
                path.join(" "),
                curve.colour
            );
        }
        let path: Vec<String> = points
            .iter()
            .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)))
            .collect();
        let dash = if curve.dashed {
            " stroke-dasharray=\"5 4\""
        } else {
            ""
        };
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.2\"{dash}/>",
            path.join(" "),
            curve.colour
        );
        for (at, value) in points {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.4\" fill=\"{}\"><title>{at:.0}: {}</title></circle>",
                x(at),
                y(value),
                curve.colour,
                brief(value)
            );
        }
    }
}
