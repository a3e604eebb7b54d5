//! The report as a page.

use super::{
    Arm, Arrivals, Axis, Band, Comparison, ENOUGH, Report, Split, Tuning, Way, axes,
    markdown::{listed, notes, setup},
};
use crate::{
    plan::Stage,
    statistics::{Estimate, survival},
};
use elbow_report::{
    bars::{Bar, Row, bars},
    chart::{Chart, Line, Look, Points, color},
    document::{Section, document, figure, switch},
    number::{count, duration, plural, score},
};
use maud::{Markup, html};

impl Report {
    /// The report as a page: one file, which asks no network.
    pub fn html(&self) -> String {
        let section = |id, name, body| Section { id, name, body };
        let sections = vec![
            section("curves", "Curves", self.curves()),
            section("scores", "Scores at the end", self.scores()),
            section("threshold", "Until the threshold", self.arrivals()),
            section("differences", "Differences", self.differences()),
            section("tuning", "Tuning", self.trials()),
            section("variance", "Variance", html! { @for split in &self.variances { (shares(split)) } }),
            section("setup", "What was run", self.spent()),
            section("reading", "How to read this", reading()),
        ];
        document("Elbow study", &format!("Study {}", self.study.name), self.header(), sections)
    }

    fn header(&self) -> Markup {
        html! {
            @if !self.study.about.is_empty() { p.lede { (self.study.about.trim()) } }
            @for stage in self.stages() { p.lead { b { (stage.words()) ": " } (self.outcome(stage)) } }
            @if !self.study.limits.is_empty() { p.lead { b { "What it cannot decide: " } (self.study.limits.trim()) } }
            (self.tiles())
            (self.warnings())
        }
    }

    /// Who ends where, and what may be said of it.
    fn outcome(&self, stage: Stage) -> Markup {
        let mut ranked: Vec<(&Arm, Estimate)> =
            self.of(stage).filter_map(|arm| Some((arm, arm.last.filter(|last| last.value.is_finite())?))).collect();
        ranked.sort_by(|a, b| b.1.value.total_cmp(&a.1.value));
        let [(best, _), ..] = ranked[..] else { return html! { "no run is finished." } };
        let ahead: Vec<&str> = self
            .comparisons
            .iter()
            .filter(|pair| pair.stage == stage)
            .filter_map(|pair| match (pair.verdict.as_str(), &pair.one, &pair.other) {
                ("better", one, other) if *one == best.name => Some(other.as_str()),
                ("worse", one, other) if *other == best.name => Some(one.as_str()),
                _ => None,
            })
            .collect();
        html! {
            @for (i, (arm, last)) in ranked.iter().enumerate() {
                @if i > 0 { ", " }
                (arm.name) " " (plus_minus(*last))
            }
            ". "
            @if self.of(stage).any(|arm| arm.seeds.len() < ENOUGH) {
                "Fewer than " (ENOUGH) " seeds of a method are finished: nothing is said of who is better."
            } @else if ahead.is_empty() {
                "The first is not told apart from any other."
            } @else {
                (best.name) " is better than " (listed(&ahead))
                @if ahead.len() + 1 < ranked.len() { "; it is not told apart from the others" }
                " (p corrected for all pairs)."
            }
        }
    }

    fn tiles(&self) -> Markup {
        let study = &self.study;
        // Where trials chose a recipe's own values, its tuned runs are the runs before.
        let same = |arm: &Arm| {
            let chose = self.tuning.iter().any(|tuning| tuning.name == arm.name && tuning.chosen == Some(0));
            chose && arm.stage == Stage::Tuned && self.stages().len() > 1
        };
        let arms: Vec<&Arm> = self.arms.iter().filter(|arm| !same(arm)).collect();
        let finished: usize = arms.iter().map(|arm| arm.seeds.len()).sum();
        let wanted = arms.len() * study.seeds.len();
        let seconds: Option<f64> = arms.iter().map(|arm| Some(arm.spent.seconds? * arm.seeds.len() as f64)).sum();
        let images: f64 = arms.iter().map(|arm| arm.spent.images * arm.seeds.len() as f64).sum();
        html! {
            ul.tiles {
                li { span.label { "methods" } span.value { (study.methods.len()) } span.note { (plural(study.seeds.len(), "seed")) " each" } }
                li { span.label { "runs finished" } span.value { (finished) } span.note { "of " (wanted) ", without trials" } }
                li { span.label { "images drawn" } span.value { (count(images)) } span.note { "without trials" } }
                @if let Some(seconds) = seconds {
                    li { span.label { "time" } span.value { (duration(seconds)) } span.note { "as counted, without trials" } }
                }
                @if let Some(threshold) = study.threshold {
                    li { span.label { "threshold" } span.value { (score(threshold)) } span.note { "of " (study.measure) } }
                }
            }
        }
    }

    fn warnings(&self) -> Markup {
        let mut texts = Vec::new();
        let wanted = self.study.seeds.len();
        let open: Vec<String> = self
            .arms
            .iter()
            .filter(|arm| arm.seeds.len() < wanted)
            .map(|arm| format!("{}, {}: {} of {wanted}", arm.name, arm.stage.name(), arm.seeds.len()))
            .collect();
        if !open.is_empty() {
            texts.push(format!("The study is not finished. Seeds of methods so far: {}.", open.join("; ")));
        }
        for arm in &self.arms {
            let title = format!("{}, {}", arm.name, arm.stage.name());
            if !arm.stopped.is_empty() {
                texts.push(format!("{title}: {} stopped before the last epoch.", plural(arm.stopped.len(), "run")));
            }
            if !arm.hacked.is_empty() {
                let judge = &self.study.hacking.measure;
                texts.push(format!(
                    "{title}: {} hacked the reward: it rose while {judge} fell.",
                    plural(arm.hacked.len(), "run")
                ));
            }
        }
        html! { @for text in texts { p.warning { (text) } } }
    }

    /// The measure along the runs, a figure a stage.
    fn curves(&self) -> Markup {
        let chart = |stage, axis: Option<Axis>| {
            let label = axis.map_or("epoch", Axis::label);
            let line = |(color, arm): (usize, &Arm)| {
                let at = |band: &Band| place(band, axis);
                Line {
                    name: arm.name.clone(),
                    color,
                    look: Look::Dots,
                    points: arm.curve.iter().map(|band| (at(band), Some(band.measure.value))).collect(),
                    band: arm.curve.iter().map(|band| (at(band), band.measure.low, band.measure.high)).collect(),
                }
            };
            let mut lines: Vec<Line> = self.of(stage).enumerate().map(line).collect();
            lines.retain(|line| !line.points.is_empty());
            if let Some(threshold) = self.study.threshold {
                let xs = || lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x));
                let (from, to) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
                let points =
                    if lines.is_empty() { Points::new() } else { vec![(from, Some(threshold)), (to, Some(threshold))] };
                lines.push(Line {
                    name: "threshold".into(),
                    color: lines.len(),
                    look: Look::Thin,
                    points,
                    band: Vec::new(),
                });
            }
            let title = format!("Held-out {} against {}, {}", self.study.measure, label, stage.name());
            Chart { title, x: label.into(), y: self.study.measure.clone(), lines, ..Chart::default() }
        };
        let caption = html! {
            "Means over seeds of " code { (self.study.measure) } " on held-out prompts. Band: the 95 % percentile bootstrap interval of the mean, "
            "which is too narrow with few seeds."
        };
        let all: Vec<Option<Axis>> = axes(&self.study).into_iter().map(Some).chain([None]).collect();
        let word = |axis: Option<Axis>| axis.map_or("epochs", Axis::name);
        html! {
            @for (i, stage) in self.stages().into_iter().enumerate() {
                @let charts: Vec<(&str, Chart)> = all.iter().map(|&axis| (word(axis), chart(stage, axis))).collect();
                @if charts.iter().any(|(_, chart)| !chart.is_empty()) {
                    (figure(stage.words(), switch(&format!("curve{i}"), &charts), html! { (caption) }))
                }
            }
        }
    }

    /// Where every method ends, before and after its trials.
    fn scores(&self) -> Markup {
        let (measure, judge) = (self.study.measure.as_str(), self.study.hacking.measure.as_str());
        let stages = self.stages();
        let many = stages.len() > 1;
        let rows = |name: &str| -> Vec<Row> {
            let of = |arm: &Arm| if name == measure { arm.last } else { arm.judge };
            let arms = || self.arms.iter().filter(|arm| arm.stage == stages[0]);
            let row = |(place, first): (usize, &Arm)| {
                let both = self.arms.iter().filter(|arm| arm.name == first.name);
                let bar = |arm: &Arm| {
                    let last = of(arm)?;
                    Some(Bar {
                        name: if many { arm.stage.words().into() } else { plural(arm.seeds.len(), "seed") },
                        color: if many && arm.stage == Stage::Published { "var(--base)".into() } else { color(place) },
                        value: last.value,
                        interval: last.high.is_finite().then_some([last.low, last.high]),
                        text: plus_minus(last),
                        before: arm.base.filter(|_| name == measure),
                    })
                };
                Row { name: first.name.clone(), total: false, bars: both.filter_map(bar).collect() }
            };
            arms().enumerate().map(row).filter(|row| !row.bars.is_empty()).collect()
        };
        html! {
            @for (i, name) in [measure, judge].into_iter().enumerate().filter(|(i, _)| *i == 0 || judge != measure) {
                @let label = format!("{name} on held-out prompts at the end of every method");
                @if let Some((table, scale)) = bars(&label, &rows(name), false) {
                    (figure(&format!("{name} on held-out prompts, at the end"), table, html! {
                        (scale) "Whiskers: Student’s 95 % interval of the mean over seeds. "
                        @if i == 0 { "The mark on a bar is what the base scored." }
                    }))
                }
            }
        }
    }

    /// What it takes until the threshold is reached.
    fn arrivals(&self) -> Markup {
        let Some(threshold) = self.study.threshold else { return html! {} };
        let chart = |stage, axis: Axis| {
            let line = |(color, arm): (usize, &Arm)| {
                let arrivals = arm.arrivals.iter().find(|arrivals| arrivals.axis == axis)?;
                Some(Line {
                    name: arm.name.clone(),
                    color,
                    look: Look::Bold,
                    points: staircase(arrivals),
                    band: Vec::new(),
                })
            };
            let lines = self.of(stage).enumerate().filter_map(line).collect();
            let title =
                format!("Share of seeds that have reached {threshold} against {}, {}", axis.label(), stage.name());
            Chart { title, x: axis.label().into(), y: "share of seeds".into(), lines, ..Chart::default() }
        };
        html! {
            p.lead { "How much is spent until " code { (self.study.measure) } " is " (score(threshold)) ", and by how many seeds." }
            @for (i, stage) in self.stages().into_iter().enumerate() {
                @let charts: Vec<(&str, Chart)> = axes(&self.study).into_iter().map(|axis| (axis.name(), chart(stage, axis))).collect();
                @if charts.iter().any(|(_, chart)| !chart.is_empty()) {
                    (figure(stage.words(), switch(&format!("way{i}"), &charts), html! {
                        "Kaplan and Meier’s estimate: a step up where a seed is first measured above the threshold. A curve that ends below 1 has seeds \
                         that never arrived."
                    }))
                    (self.times(stage))
                }
            }
        }
    }

    fn times(&self, stage: Stage) -> Markup {
        html! {
            div.scroll {
                table {
                    thead { tr { th { "method" } th { "arrived" } th { "counted in" } th.number { "median" } th.number { "mean" } th.number { "cut off at" } } }
                    tbody {
                        @for arm in self.of(stage) {
                            @for Arrivals { axis, times, arrived, median, restricted_mean, until } in &arm.arrivals {
                                tr {
                                    th scope="row" { (arm.name) }
                                    td { (arrived) " of " (times.len()) }
                                    td { (axis.name()) }
                                    @if *arrived == 0 {
                                        td.number { "more than " (count(*until)) } td.number { "–" }
                                    } @else {
                                        td.number { (spent(*median)) } td.number { (spent(*restricted_mean)) }
                                    }
                                    td.number { (count(*until)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn differences(&self) -> Markup {
        html! {
            @for stage in self.stages() {
                @let pairs: Vec<&Comparison> = self.comparisons.iter().filter(|pair| pair.stage == stage).collect();
                @if !pairs.is_empty() { h3 { (stage.words()) } (comparisons(&pairs)) }
            }
        }
    }

    /// What trials chose, and what that changed.
    fn trials(&self) -> Markup {
        let Some(tune) = &self.study.tune else { return html! {} };
        let text = |changes: &[String]| if changes.is_empty() { "as in the recipe".into() } else { changes.join(", ") };
        html! {
            p.lead {
                "Every method has " (tune.budget) " trials of " (tune.share) " of a run’s budget, on seeds " (listed(&tune.seeds))
                " and on training prompts that are held out of training in a trial. The recipe’s own values are always one of the candidates; the best \
                 mean score is chosen."
            }
            div.scroll {
                table {
                    thead { tr { th { "method" } th { "candidate" } th.number { "score" } th { "" } } }
                    tbody {
                        @for Tuning { name, candidates, chosen, .. } in &self.tuning {
                            @for (i, (changes, value)) in candidates.iter().enumerate() {
                                tr {
                                    @if i == 0 { th scope="rowgroup" rowspan=(candidates.len()) { (name) } }
                                    td { code { (text(changes)) } }
                                    td.number {
                                        @match (value, chosen) { (Some(value), _) => (score(*value)), (None, Some(_)) => "stopped", (None, None) => "not yet" }
                                    }
                                    td { @if *chosen == Some(i) { b { "chosen" } } }
                                }
                            }
                        }
                    }
                }
            }
            @if !self.gains.is_empty() {
                h3 { "What tuning changed" }
                (comparisons(&self.gains.iter().collect::<Vec<_>>()))
            }
        }
    }

    /// Settings, and what runs spent.
    fn spent(&self) -> Markup {
        html! {
            p.lead { (plain(&setup(self))) }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "method" } th { "" } th.number { "seeds" } th.number { "epochs" } th.number { "images" } th.number { "evaluations" }
                            th.number { "with gradient" } th.number { "time" } th.number { "stopped" } th.number { "hacked" }
                        }
                    }
                    tbody {
                        @for arm in &self.arms {
                            tr {
                                th scope="row" { (arm.name) }
                                td { (arm.stage.name()) }
                                td.number { (arm.seeds.len()) }
                                td.number { (arm.epochs) }
                                td.number { (count(arm.spent.images)) }
                                td.number { (count(arm.spent.forward + arm.spent.backward)) }
                                td.number { (count(arm.spent.backward)) }
                                td.number { (arm.spent.seconds.map_or_else(|| "–".into(), duration)) }
                                td.number { (arm.stopped.len()) }
                                td.number { (arm.hacked.len()) }
                            }
                        }
                    }
                }
            }
            p.caption { "Means over the finished runs of a method." }
        }
    }

    fn of(&self, stage: Stage) -> impl Iterator<Item = &Arm> {
        self.arms.iter().filter(move |arm| arm.stage == stage)
    }
}

/// Where a point of a curve lies: by what was spent until then, or by its epoch.
fn place(band: &Band, axis: Option<Axis>) -> f64 {
    let spent = band.spent;
    match axis {
        Some(Axis::Images) => spent.images,
        Some(Axis::Evaluations) => spent.forward + spent.backward,
        Some(Axis::Seconds) => spent.seconds.unwrap_or(f64::NAN),
        None => band.epoch as f64,
    }
}

/// The share of seeds that have arrived, as steps from nothing spent to the last look.
fn staircase(arrivals: &Arrivals) -> Points {
    let last = arrivals.times.iter().map(|arrival| arrival.time).fold(0.0, f64::max);
    let (mut points, mut share) = (vec![(0.0, Some(0.0))], 0.0);
    for step in survival::kaplan_meier(&arrivals.times) {
        points.extend([(step.time, Some(share)), (step.time, Some(1.0 - step.share))]);
        share = 1.0 - step.share;
    }
    points.push((last, Some(share)));
    points
}

fn comparisons(pairs: &[&Comparison]) -> Markup {
    let ways = || pairs.iter().flat_map(|pair| pair.ways.iter().map(move |way| (pair, way)));
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "first" } th { "second" } th.number { "difference" } th.number { "Hedges’ g" } th.number { "p" } th.number { "corrected" }
                        th { "the first is" }
                    }
                }
                tbody {
                    @for pair in pairs {
                        tr {
                            th scope="row" { (pair.one) }
                            td { (pair.other) }
                            td.number { (pair.difference.map_or_else(|| "–".into(), spread)) }
                            td.number { (pair.effect.map_or_else(|| "–".into(), spread)) }
                            td.number { (probability(pair.p)) }
                            td.number { (probability(pair.corrected)) }
                            td { (verdict(&pair.verdict)) }
                        }
                    }
                }
            }
        }
        @if ways().next().is_some() {
            details {
                summary { "The same of what is spent until the threshold" }
                div.scroll {
                    table {
                        thead {
                            tr {
                                th { "first" } th { "second" } th { "counted in" } th.number { "second / first" } th.number { "not arrived" } th.number { "p" }
                                th.number { "corrected" } th { "the first arrives" }
                            }
                        }
                        tbody {
                            @for (pair, Way { axis, ratio, censored: [a, b], p, corrected, verdict: word, .. }) in ways() {
                                tr {
                                    th scope="row" { (pair.one) }
                                    td { (pair.other) }
                                    td { (axis.name()) }
                                    td.number { (spread(*ratio)) }
                                    td.number { (a) ", " (b) }
                                    td.number { (probability(*p)) }
                                    td.number { (probability(*corrected)) }
                                    td { (verdict(word)) }
                                }
                            }
                        }
                    }
                }
                p.caption {
                    "The ratio is that of mean times, cut off at one time for both. Where a seed did not arrive by then, it is nearer to 1 than the truth may be."
                }
            }
        }
    }
}

/// A word, in the color of what it says.
fn verdict(word: &str) -> Markup {
    match word {
        "better" | "sooner" => html! { b.right { (word) } },
        "worse" | "later" => html! { b.wrong { (word) } },
        _ => html! { span.soft { (word) } },
    }
}

fn shares(split: &Split) -> Markup {
    let [first, second] = &split.asked.factors;
    let only: Vec<String> = split.asked.only.iter().map(|(factor, level)| format!("{factor} = {level}")).collect();
    let title = format!("{first} and {second}, {}", split.stage.name());
    let names = [first.as_str(), second.as_str(), "both together"];
    html! {
        h3 { (title) }
        p.lead {
            (first) ": " (split.levels[0].join(", ")) "; " (second) ": " (split.levels[1].join(", "))
            @if !only.is_empty() { "; where " (only.join(" and ")) }
            ". " (plural(split.seeds, "seed")) " in each cell."
        }
        @match split.parts {
            None => p.empty { "No shares: " (split.refused.as_deref().unwrap_or("nothing is known")) "." },
            Some(parts) => {
                @let all = [parts.first, parts.second, parts.interaction];
                @let row = |i: usize| Bar {
                    name: String::new(),
                    color: color(i),
                    value: all[i].eta,
                    interval: split.eta.map(|eta| [eta[i].low, eta[i].high]),
                    text: split.eta.map_or_else(|| score(all[i].eta), |eta| spread(eta[i])),
                    before: None,
                };
                @let rows: Vec<Row> = (0..3).map(|i| Row { name: names[i].into(), total: false, bars: vec![row(i)] }).collect();
                @if let Some((table, scale)) = bars("Shares of variance", &rows, false) {
                    (figure("Share of the variance (η²)", table, html! { (scale) "Whiskers: percentile bootstrap intervals." }))
                }
                div.scroll {
                    table {
                        thead { tr { th { "part" } th.number { "ω²" } th.number { "F" } th.number { "degrees of freedom" } th.number { "p" } } }
                        tbody {
                            @for (name, share) in names.iter().zip(all) {
                                tr {
                                    th scope="row" { (name) }
                                    td.number { (score(share.omega)) }
                                    td.number { (format!("{:.2}", share.f)) }
                                    td.number { (share.freedom) ", " (parts.residual_freedom) }
                                    td.number { (probability(Some(share.p))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn reading() -> Markup {
    html! { @for paragraph in notes().split("\n\n") { p.lead { (plain(paragraph)) } } }
}

/// Markdown's code in place of its marks.
fn plain(text: &str) -> Markup {
    html! {
        @for (i, part) in text.split('`').enumerate() {
            @if i % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// "0.531 ± 0.041" of an interval that is symmetric, else with its ends.
fn plus_minus(estimate: Estimate) -> String {
    let Estimate { value, low, high } = estimate;
    let (below, above) = (value - low, high - value);
    match above {
        _ if !above.is_finite() || !below.is_finite() => score(value),
        _ if (above - below).abs() <= 1e-9 * (above + below).max(1e-9) => {
            format!("{} ± {}", score(value), score(above))
        }
        _ => spread(estimate),
    }
}

/// "0.530 (0.491 to ∞)".
fn spread(estimate: Estimate) -> String {
    words(estimate, score)
}

/// "13 440 (10 752 to ∞)", of what is counted.
fn spent(estimate: Estimate) -> String {
    words(estimate, |value| if value < 10.0 { format!("{value:.1}") } else { count(value) })
}

/// A number with its interval.
fn words(estimate: Estimate, number: fn(f64) -> String) -> String {
    let Estimate { value, low, high } = estimate;
    let number = |value: f64| match value {
        f64::INFINITY => "∞".into(),
        f64::NEG_INFINITY => "−∞".into(),
        _ => number(value),
    };
    if value.is_nan() { "–".into() } else { format!("{} ({} to {})", number(value), number(low), number(high)) }
}

fn probability(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(p) if p < 1e-4 => "< 0.0001".into(),
        Some(p) => format!("{p:.4}"),
    }
}
