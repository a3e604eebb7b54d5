//! Curves as SVG: axes with ticks, lines with gaps, dots, and bands.
//!
//! A figure scales with the page, and its text with it. So a large one is drawn twice, for wide and for narrow pages, and the page's
//! style shows one of them.

use crate::{
    number,
    series::{MOST, thinned, thinned_ends},
};
use maud::{Markup, html};
use std::fmt::Write;

/// A curve: x, and y where there is one. Where there is none the curve has a gap.
pub type Points = Vec<(f64, Option<f64>)>;

/// A figure of curves.
#[derive(Default)]
pub struct Chart {
    /// What one sees, in words; read aloud in place of the figure.
    pub title: String,
    /// The label of the axis along which it runs.
    pub x: String,
    /// The label of the other one.
    pub y: String,
    /// The curves, drawn one over the other.
    pub lines: Vec<Line>,
    /// Ranges of x and y, for figures that are to have the same; otherwise they follow from the curves.
    pub frame: Option<[Scale; 2]>,
}

/// One curve.
pub struct Line {
    /// What it is called in the legend, at its end and under the pointer.
    pub name: String,
    /// Index into the palette.
    pub color: usize,
    /// How it is drawn.
    pub look: Look,
    /// Where it runs.
    pub points: Points,
    /// x, lower and upper end.
    pub band: Vec<(f64, f64, f64)>,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// What matters.
    Bold,
    /// What it is made of.
    Thin,
    /// Measured now and then: dots, and a line between them.
    Dots,
    /// Not at all: the axis holds its values and its band is drawn.
    Hidden,
}

impl Look {
    /// Whether the curve is named at its end.
    fn is_named(self) -> bool {
        matches!(self, Self::Bold | Self::Dots)
    }
}

/// Colors that are told apart with color blindness; more curves than that repeat them with dashes.
pub const COLORS: usize = 6;

/// Width and height of a figure in units of its text, which is 12 high.
#[derive(Clone, Copy)]
struct Size {
    width: f64,
    height: f64,
    /// Whether curves are named at their ends.
    named: bool,
    class: &'static str,
}

const WIDE: Size = Size { width: 860.0, height: 320.0, named: true, class: "wide" };
const NARROW: Size = Size { width: 350.0, height: 250.0, named: false, class: "narrow" };
const MEDIUM: Size = Size { width: 420.0, height: 220.0, named: false, class: "medium" };
const SMALL: Size = Size { width: 300.0, height: 170.0, named: false, class: "small" };

/// Least distance of two names.
const APART: f64 = 15.0;
/// Width of a letter of a name, and letters that a name may have.
const LETTER: f64 = 7.6;
const LETTERS: usize = 24;

impl Chart {
    /// A large figure.
    pub fn large(&self) -> Markup {
        html! { (self.draw(WIDE)) (self.draw(NARROW)) }
    }

    /// One of two side by side.
    pub fn medium(&self) -> Markup {
        self.draw(MEDIUM)
    }

    /// One of several small ones.
    pub fn small(&self) -> Markup {
        self.draw(SMALL)
    }

    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.points.iter().all(|(_, y)| y.is_none()))
    }

    /// The names of the curves, each with its color; nothing if there is one.
    pub fn legend(&self) -> Markup {
        // A name stands beside the strongest of its curves.
        let mut seen: Vec<&Line> = Vec::new();
        for line in self.lines.iter().filter(|line| line.look != Look::Hidden) {
            match seen.iter_mut().find(|other| other.name == line.name) {
                Some(other) if other.look == Look::Thin => *other = line,
                Some(_) => {}
                None => seen.push(line),
            }
        }
        html! {
            @if seen.len() > 1 {
                ul.legend {
                    @for line in seen {
                        li { svg viewBox="0 0 26 10" width="26" height="10" aria-hidden="true" { (key(line)) } (line.name) }
                    }
                }
            }
        }
    }

    fn draw(&self, size: Size) -> Markup {
        let [x, y] = self.frame();
        let whole = self.x == "epoch" || self.x.starts_with("images");
        let x_ticks = Ticks::of(x, if size.width > 500.0 { 8 } else { 4 }, if whole { 1.0 } else { 0.0 });
        let y_ticks = Ticks::of(y, if size.height > 200.0 { 5 } else { 4 }, 0.0);
        let ends = self.lines.iter().filter(|line| size.named && line.look.is_named());
        let letters = ends.map(|line| line.name.chars().count().min(LETTERS)).max();
        let names = letters.map_or(0.0, |letters| 10.0 + LETTER * letters as f64);
        let widest = y_ticks.labels.iter().map(|label| label.chars().count()).max().unwrap_or(1);
        let (left, right) = (10.0 + 7.0 * widest as f64, size.width - 14.0 - names);
        let (top, bottom) = (26.0, size.height - 38.0);
        let across = |value: f64| left + x.share(value) * (right - left);
        let down = |value: f64| bottom - y.share(value) * (bottom - top);
        let (across_axis, down_axis) = (data(&[x.from, x.to, left, right]), data(&[y.from, y.to, bottom, top]));
        html! {
            svg.plot.(size.class) viewBox=(format!("0 0 {} {}", size.width, size.height)) role="img" aria-label=(self.title)
                data-x=(across_axis) data-y=(down_axis) data-unit=(self.x) {
                desc { (self.y) " against " (self.x) }
                text.axis x="0" y="13" { (self.y) }
                @for (tick, label) in y_ticks.at.iter().zip(&y_ticks.labels) {
                    line.grid x1=(px(left)) x2=(px(right)) y1=(px(down(*tick))) y2=(px(down(*tick))) {}
                    text.tick x=(px(left - 6.0)) y=(px(down(*tick) + 4.0)) text-anchor="end" { (label) }
                }
                @for (tick, label) in x_ticks.at.iter().zip(&x_ticks.labels) {
                    line.stub x1=(px(across(*tick))) x2=(px(across(*tick))) y1=(px(bottom)) y2=(px(bottom + 4.0)) {}
                    text.tick x=(px(across(*tick))) y=(px(bottom + 17.0)) text-anchor="middle" { (label) }
                }
                text.axis x=(px(f64::midpoint(left, right))) y=(px(size.height - 4.0)) text-anchor="middle" { (self.x) }
                // What lies outside is cut off: a band may be as wide as it likes.
                svg x=(px(left - 5.0)) y=(px(top - 5.0)) width=(px(right - left + 10.0)) height=(px(bottom - top + 10.0))
                    viewBox=(data(&[left - 5.0, top - 5.0, right - left + 10.0, bottom - top + 10.0])) {
                    @for line in &self.lines { (band(line, across, down)) }
                    @for line in &self.lines { (strokes(line, across, down)) }
                }
                @if size.named {
                    @for (line, at) in self.ends(down, top, bottom) {
                        text.name style=(format!("fill:{}", color(line.color))) x=(px(right + 10.0)) y=(px(at + 4.0)) { (shortened(&line.name)) }
                    }
                }
            }
        }
    }

    /// The ranges of x and y. That of y holds all of the curves, and of the bands no more than half as much again on either side. Scores
    /// that begin near zero begin at zero.
    pub fn frame(&self) -> [Scale; 2] {
        if let Some(frame) = self.frame {
            return frame;
        }
        let there = || self.lines.iter().flat_map(|line| line.points.iter().filter_map(|(x, y)| Some((*x, (*y)?))));
        let curves = Scale::over(there().map(|(_, y)| y));
        let reach = 0.5 * (curves.to - curves.from);
        let (mut from, mut to) = (curves.from, curves.to);
        for (_, low, high) in self.lines.iter().flat_map(|line| &line.band) {
            from = from.min(low.max(curves.from - reach));
            to = to.max(high.min(curves.to + reach));
        }
        if curves.from >= 0.0 && from < 0.5 * to {
            from = 0.0;
        }
        // A little room around the curves, but none below zero and above one, where scores end.
        let room = 0.04 * (to - from);
        let y = Scale {
            from: if from == 0.0 { 0.0 } else { from - room },
            to: if (to - 1.0).abs() < 1e-9 { to } else { to + room },
        };
        [Scale::over(there().map(|(x, _)| x)), y]
    }

    /// Ranges that hold several figures.
    pub fn frame_of(charts: &[Self]) -> Option<[Scale; 2]> {
        let frames: Vec<[Scale; 2]> = charts.iter().map(Self::frame).collect();
        let over = |axis: usize| Scale {
            from: frames.iter().map(|frame| frame[axis].from).fold(f64::INFINITY, f64::min),
            to: frames.iter().map(|frame| frame[axis].to).fold(f64::NEG_INFINITY, f64::max),
        };
        (!frames.is_empty()).then(|| [over(0), over(1)])
    }

    /// Curves that are named at their ends, with heights that keep the names apart.
    fn ends(&self, down: impl Fn(f64) -> f64, top: f64, bottom: f64) -> Vec<(&Line, f64)> {
        let last = |line: &Line| line.points.iter().rev().find_map(|(_, y)| *y);
        let named = self.lines.iter().filter(|line| line.look.is_named());
        let mut ends: Vec<(&Line, f64)> = named.filter_map(|line| Some((line, down(last(line)?)))).collect();
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        for i in 1..ends.len() {
            ends[i].1 = ends[i].1.max(ends[i - 1].1 + APART);
        }
        let mut lowest = bottom;
        for end in ends.iter_mut().rev() {
            end.1 = end.1.min(lowest);
            lowest = end.1 - APART;
        }
        ends.retain(|end| end.1 >= top - APART);
        ends
    }
}

/// The area of a band.
fn band(line: &Line, across: impl Fn(f64) -> f64, down: impl Fn(f64) -> f64) -> Markup {
    let ends = thinned_ends(&line.band, MOST / 2);
    let upper = ends.iter().map(|(x, _, high)| (*x, *high));
    let lower = ends.iter().rev().map(|(x, low, _)| (*x, *low));
    let outline = points(upper.chain(lower), across, down);
    html! { @if ends.len() > 1 { polygon.band.mark style=(format!("fill:{}", color(line.color))) points=(outline) {} } }
}

/// The strokes of a curve between its gaps, and its dots. A value between two gaps is a dot.
fn strokes(line: &Line, across: impl Fn(f64) -> f64 + Copy, down: impl Fn(f64) -> f64 + Copy) -> Markup {
    if line.look == Look::Hidden {
        return html! {};
    }
    let thin = thinned(&line.points, MOST);
    let pieces: Vec<Vec<(f64, f64)>> = thin
        .split(|(_, y)| y.is_none())
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.iter().filter_map(|(x, y)| Some((*x, (*y)?))).collect())
        .collect();
    let stroke = format!("stroke:{}", color(line.color));
    let fill = format!("fill:{}", color(line.color));
    let dashes = dashes(line.color);
    let radius = if line.look == Look::Dots { "3.5" } else { "2" };
    html! {
        @for piece in &pieces {
            @if piece.len() > 1 {
                polyline.mark.(class(line.look)) style=(stroke) stroke-dasharray=[dashes] data-name=(line.name)
                    points=(points(piece.iter().copied(), across, down)) {}
            }
            @if piece.len() == 1 || line.look == Look::Dots {
                @for (x, y) in piece {
                    circle.mark.dot style=(fill) cx=(px(across(*x))) cy=(px(down(*y))) r=(radius) data-name=(line.name) {}
                }
            }
        }
    }
}

/// A piece of a curve for a legend.
fn key(line: &Line) -> Markup {
    let stroke = format!("stroke:{}", color(line.color));
    html! {
        line.(class(line.look)) style=(stroke) stroke-dasharray=[dashes(line.color)] x1="1" x2="25" y1="5" y2="5" {}
        @if line.look == Look::Dots { circle.dot style=(format!("fill:{}", color(line.color))) cx="13" cy="5" r="3.5" {} }
    }
}

fn class(look: Look) -> &'static str {
    match look {
        Look::Bold => "bold",
        Look::Thin => "thin",
        Look::Dots => "dots",
        Look::Hidden => "hidden",
    }
}

/// A color of the palette, which is of the page's style.
pub fn color(index: usize) -> String {
    format!("var(--c{})", index % COLORS)
}

fn dashes(index: usize) -> Option<&'static str> {
    ["7 3", "2 3", "9 3 2 3"].get((index / COLORS).checked_sub(1)?.min(2)).copied()
}

fn points(points: impl Iterator<Item = (f64, f64)>, across: impl Fn(f64) -> f64, down: impl Fn(f64) -> f64) -> String {
    let mut text = String::new();
    for (x, y) in points {
        let _ = write!(text, "{},{} ", px(across(x)), px(down(y)));
    }
    text.truncate(text.trim_end().len());
    text
}

/// A length in the figure.
fn px(length: f64) -> String {
    let text = format!("{length:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn data(numbers: &[f64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        name.to_owned()
    } else {
        name.chars().take(LETTERS - 1).chain(['…']).collect()
    }
}

/// A range of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    /// From the least to the greatest value; wider if they are one, and 0 to 1 if there is none.
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (from, to) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), v| (from.min(v), to.max(v)));
        if from > to {
            Self { from: 0.0, to: 1.0 }
        } else if to - from <= 1e-12 * from.abs().max(to.abs()) {
            let half = if from == 0.0 { 1.0 } else { 0.5 * from.abs() };
            Self { from: from - half, to: to + half }
        } else {
            Self { from, to }
        }
    }

    /// The same, but as far as `reach` on both sides of zero at least: what is small there shall look small.
    #[must_use]
    pub fn around_zero(self, reach: f64) -> Self {
        Self { from: self.from.min(-reach), to: self.to.max(reach) }
    }

    /// Where a value lies between the ends.
    fn share(self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }
}

/// Round numbers along an axis.
#[derive(Debug, PartialEq)]
struct Ticks {
    at: Vec<f64>,
    labels: Vec<String>,
}

impl Ticks {
    /// Multiples of 1, 2 or 5 times a power of ten inside the range: of all such steps from `least` on the one that gives about `count`.
    fn of(scale: Scale, count: usize, least: f64) -> Self {
        let power = ((scale.to - scale.from) / count as f64).log10().floor() as i32;
        let ends = |step: f64| ((scale.from / step - 1e-6).ceil(), (scale.to / step + 1e-6).floor());
        let off = |step: f64| {
            let (first, last) = ends(step);
            (last - first + 1.0 - count as f64).abs()
        };
        let steps = (power - 1..=power + 1).flat_map(|k| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(k)));
        let step = steps.filter(|step| *step >= least).min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(least);
        let (first, last) = ends(step);
        let at: Vec<f64> = (0..=(last - first).max(0.0) as usize).map(|k| (first + k as f64) * step).collect();
        let at: Vec<f64> = at.into_iter().filter(|value| *value <= scale.to + 1e-6 * step).collect();
        let labels = at.iter().map(|value| label(*value, step)).collect();
        Self { at, labels }
    }
}

/// A tick with as many digits as its step has.
fn label(value: f64, step: f64) -> String {
    if value.abs() < 1e-9 * step {
        return "0".into();
    }
    if step < 1e-4 {
        return number::minus(format!("{value:.0e}")).replace("e-", "e−");
    }
    if step >= 1e6 {
        return number::minus(format!("{}M", value / 1e6));
    }
    if step >= 1000.0 {
        return number::minus(format!("{}k", value / 1e3));
    }
    let decimals = (-step.log10() - 1e-9).ceil().max(0.0) as usize;
    number::minus(format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(from: f64, to: f64, count: usize) -> Vec<String> {
        Ticks::of(Scale { from, to }, count, 0.0).labels
    }

    #[test]
    fn ticks_are_round_and_have_the_digits_of_their_step() {
        assert_eq!(labels(0.0, 1.0, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.31, 0.94, 5), ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]);
        assert_eq!(labels(0.33, 0.38, 3), ["0.34", "0.36", "0.38"]);
        assert_eq!(labels(1.0, 60.0, 6), ["10", "20", "30", "40", "50", "60"]);
        assert_eq!(labels(0.0, 23040.0, 4), ["0", "5k", "10k", "15k", "20k"]);
        assert_eq!(labels(-1.15, -0.75, 4), ["−1.1", "−1.0", "−0.9", "−0.8"]);
        assert_eq!(labels(0.0, 3e-5, 3), ["0", "1e−5", "2e−5", "3e−5"]);
        assert_eq!(labels(0.0, 0.0125, 3), ["0", "0.005", "0.010"]);
        assert_eq!(Ticks::of(Scale { from: 1.0, to: 3.0 }, 8, 1.0).labels, ["1", "2", "3"], "epochs are whole");
        assert_eq!(labels(0.0, 4e6, 4), ["0", "1M", "2M", "3M", "4M"]);
    }

    #[test]
    fn a_range_without_width_or_values_is_one() {
        assert_eq!(Scale::over([2.0, 2.0].into_iter()), Scale { from: 1.0, to: 3.0 });
        assert_eq!(Scale::over([0.0].into_iter()), Scale { from: -1.0, to: 1.0 });
        assert_eq!(Scale::over(std::iter::empty()), Scale { from: 0.0, to: 1.0 });
        assert!((Scale { from: 1.0, to: 3.0 }.share(1.5) - 0.25).abs() < 1e-12);
    }

    fn chart(points: Points) -> Chart {
        let line = Line { name: "reward <b>".into(), color: 0, look: Look::Bold, points, band: Vec::new() };
        Chart { title: "t".into(), x: "epoch".into(), y: "reward".into(), lines: vec![line], frame: None }
    }

    #[test]
    fn a_gap_cuts_the_line_and_a_lone_value_is_a_dot() {
        let y = [Some(0.0), Some(1.0), None, Some(0.5), None, Some(1.0), Some(0.0)];
        let svg = chart(y.into_iter().enumerate().map(|(x, y)| (x as f64, y)).collect()).small().into_string();
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 1), "{svg}");
        assert!(svg.contains("reward &lt;b&gt;") && !svg.contains("<b>"), "{svg}");
    }

    #[test]
    fn values_lie_where_the_axis_says() {
        let svg = chart(vec![(0.0, Some(0.0)), (10.0, Some(1.0))]).small().into_string();
        let attribute = |name: &str| -> Vec<f64> {
            let rest = svg.split(&format!("{name}=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().split([' ', ',']).map(|n| n.parse().unwrap()).collect()
        };
        let (x, y, line) = (attribute("data-x"), attribute("data-y"), attribute(" points"));
        let value = |axis: &[f64], at: f64| axis[0] + (at - axis[2]) / (axis[3] - axis[2]) * (axis[1] - axis[0]);
        let back: Vec<f64> = [value(&x, line[0]), value(&y, line[1]), value(&x, line[2]), value(&y, line[3])].to_vec();
        assert!(back.iter().zip([0.0, 0.0, 10.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-3), "{back:?}");
    }

    #[test]
    fn a_wide_band_does_not_flatten_the_curve() {
        let mut chart = chart(vec![(0.0, Some(0.4)), (1.0, Some(0.6))]);
        chart.lines[0].band = vec![(0.0, -90.0, 90.0), (1.0, 0.5, 0.7)];
        let [_, scale] = chart.frame();
        assert!(scale.from >= 0.0 && scale.to < 0.75, "{scale:?}");
    }

    #[test]
    fn names_at_the_ends_do_not_overlap() {
        let mut chart = chart(vec![(0.0, Some(0.5))]);
        for number in 0..5 {
            let points = vec![(0.0, Some(0.5 + 1e-3 * f64::from(number)))];
            chart.lines.push(Line { name: number.to_string(), color: 1, look: Look::Bold, points, band: Vec::new() });
        }
        let ends = chart.ends(|y| 200.0 - 100.0 * y, 0.0, 200.0);
        assert_eq!(ends.len(), 6);
        assert!(ends.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 14.99));
    }
}
