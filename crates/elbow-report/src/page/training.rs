//! What epochs record beside their mean reward: rewards by task, how they spread, and whether training is healthy.

use super::{Page, curves::bands, figure};
use crate::{
    chart::{Chart, Line, Look},
    group::Group,
    measure::tag,
    pictures::{numbered, spread},
    series::{Band, Points, X, band, by_epoch, curve, smooth},
};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

/// What an epoch records beside its rewards: key, title, and what a reader should know.
const HEALTH: [(&str, &str, &str); 9] = [
    (
        "reward_std_mean",
        "Differences within groups",
        "Standard deviation of rewards of one prompt: what there is to learn from.",
    ),
    (
        "zero_std_ratio",
        "Groups that agree",
        "Share of prompts whose pictures all score alike: nothing to prefer among them.",
    ),
    ("reward_missing", "Missing rewards", "Pictures without a score."),
    ("policy_loss", "Policy loss", "What is minimized, before penalties. It need not fall."),
    ("log_prob", "Log-probability", "Of the samples under the weights that are trained, as the likelihood has it."),
    ("grad_norm", "Gradient norm", "Before clipping."),
    ("approx_kl", "Step of an update", "Half the mean square of the log-ratio to the weights that drew."),
    (
        "logratio_max",
        "Largest log-ratio",
        "Of any sample to the weights that drew: far from zero, one sample rules a step.",
    ),
    ("clipfrac", "Clipped", "Share of samples whose ratio is outside the clip range."),
];

pub(super) fn section(page: &Page<'_>) -> Markup {
    html! { (by_task(page)) (spreads(page)) (health(page)) }
}

/// The training reward by tag of the prompt, and its parts.
fn by_task(page: &Page<'_>) -> Markup {
    let keys: BTreeSet<&str> = page
        .runs
        .iter()
        .flat_map(|run| run.trained().flat_map(|epoch| epoch.record.keys()))
        .map(String::as_str)
        .collect();
    let rewards: BTreeSet<String> =
        page.runs.iter().filter_map(|run| run.reward.as_ref()).map(|name| format!("reward_{name}")).collect();
    let is_part =
        |key: &str| key.starts_with("reward_") && !rewards.contains(key) && keys.contains(&*format!("{key}_std"));
    let mut groups: Vec<(String, Vec<(String, Chart)>, &str)> = Vec::new();
    for own in &rewards {
        let tags = keys.iter().filter_map(|key| Some((*key, key.strip_prefix(own)?.strip_prefix('_')?)));
        let tags = tags.filter(|(key, name)| {
            *name != "std" && !name.ends_with("_std") && !is_part(key) && !rewards.contains(*key)
        });
        let charts = charts(page, tags.collect(), "mean reward");
        let name = own.strip_prefix("reward_").filter(|_| rewards.len() > 1).map(|name| format!(": {name}"));
        let caption =
            "The same reward over the prompts of one task. An epoch draws few of each, or none: expect noise.";
        groups.push((format!("Training reward by task{}", name.unwrap_or_default()), charts, caption));
    }
    let parts = keys.iter().filter(|key| is_part(key)).filter_map(|key| Some((*key, key.strip_prefix("reward_")?)));
    groups.push((
        "Parts of the reward".into(),
        charts(page, parts.collect(), "mean score"),
        "What the reward is made of.",
    ));
    html! {
        @for (title, charts, caption) in groups {
            @if !charts.is_empty() {
                h3 { (title) }
                div.small-figures { @for (name, chart) in charts { (figure(&name, chart.small(), html! {})) } }
                p.caption { (caption) " " @if page.groups.len() > 1 || page.runs.len() > 1 { (bands(page)) } }
                @if page.groups.len() > 1 { (names(page)) }
            }
        }
    }
}

/// A figure a key, all in one frame.
fn charts(page: &Page<'_>, keys: Vec<(&str, &str)>, y: &str) -> Vec<(String, Chart)> {
    let chart = |(key, name): (&str, &str)| {
        let name = tag(name);
        let lines = page.groups.iter().enumerate().flat_map(|(color, group)| averages(color, group, key)).collect();
        (
            name.clone(),
            Chart { title: format!("{y}, {name}"), x: "epoch".into(), y: y.into(), lines, ..Chart::default() },
        )
    };
    let mut charts: Vec<(String, Chart)> = keys.into_iter().map(chart).filter(|(_, chart)| !chart.is_empty()).collect();
    let frame = Chart::frame_of(&charts.iter().map(|(_, chart)| chart).collect::<Vec<_>>());
    charts.iter_mut().for_each(|(_, chart)| chart.frame = frame);
    charts
}

/// Of one run its epochs and their average, of several seeds the mean of their averages.
fn averages(color: usize, group: &Group<'_>, key: &str) -> Vec<Line> {
    let line = |look, points, band| Line { name: group.label.clone(), color, look, points, band };
    let seeds = group.seeds();
    let curves: Vec<Points> = seeds.iter().map(|run| curve(run, key, X::Epochs)).collect();
    let lines = match &curves[..] {
        [raw] => vec![line(Look::Thin, raw.clone(), Vec::new()), line(Look::Bold, smooth(raw), Vec::new())],
        _ => {
            let all: Vec<BTreeMap<_, _>> =
                seeds.iter().zip(&curves).map(|(run, raw)| by_epoch(run, key, &smooth(raw))).collect();
            let Band { mean, ends } = band(&all);
            vec![line(Look::Bold, mean, ends)]
        }
    };
    lines.into_iter().filter(|line| line.points.iter().any(|(_, y)| y.is_some())).collect()
}

/// How the rewards of an epoch spread, of one run.
fn spreads(page: &Page<'_>) -> Markup {
    let Some(run) = page.single() else { return html! {} };
    let logs = numbered(&run.folder.samples(), "jsonl");
    const EPOCHS: usize = 60;
    let every = logs.len().div_ceil(EPOCHS).max(1);
    let spreads: Vec<(f64, [f64; 5])> = logs
        .iter()
        .enumerate()
        .filter(|(index, _)| index.is_multiple_of(every) || index + 1 == logs.len())
        .filter_map(|(_, (epoch, path))| Some((*epoch as f64, spread(path)?)))
        .collect();
    if spreads.len() < 2 {
        return html! {};
    }
    let band = |low: usize, high: usize| spreads.iter().map(|(x, q)| (*x, q[low], q[high])).collect();
    let line = |look, points, band| Line { name: "median".into(), color: 0, look, points, band };
    let median: Points = spreads.iter().map(|(x, q)| (*x, Some(q[2]))).collect();
    let ends: Points = spreads.iter().flat_map(|(x, q)| [(*x, Some(q[0])), (*x, Some(q[4]))]).collect();
    let chart = Chart {
        title: "Quantiles of the rewards of an epoch’s pictures, against epochs".into(),
        x: "epoch".into(),
        y: "reward of a picture".into(),
        lines: vec![line(Look::Hidden, ends, band(0, 4)), line(Look::Bold, median, band(1, 3))],
        ..Chart::default()
    };
    figure(
        "How the rewards of pictures spread",
        chart.large(),
        html! {
            "Line: the median picture of an epoch. Dark: the middle half. Light: eight of ten. "
            @if every > 1 { "One epoch of every " (every) " is shown." }
        },
    )
}

/// Small figures of what else an epoch records.
fn health(page: &Page<'_>) -> Markup {
    let mut shown = Vec::new();
    let mut zero = Vec::new();
    for (key, title, note) in HEALTH {
        let values = || page.runs.iter().flat_map(|run| run.trained().filter_map(|epoch| epoch.number(key)));
        if values().next().is_none() {
            continue;
        }
        if values().all(|value| value == 0.0) {
            zero.push(title.to_lowercase());
            continue;
        }
        let chart = Chart {
            title: title.into(),
            x: "epoch".into(),
            y: key.into(),
            lines: means(page, key),
            ..Chart::default()
        };
        shown.push((title, note, chart));
    }
    html! {
        @if !shown.is_empty() {
            h3 { "Health of training" }
            div.small-figures { @for (title, note, chart) in shown { (figure(title, chart.small(), html! { (note) })) } }
        }
        @if !zero.is_empty() { p.caption { "Zero in every epoch, and not drawn: " (zero.join(", ")) "." } }
        @if page.groups.len() > 1 { (names(page)) }
    }
}

/// The colors of the recipes, below figures without a legend of their own.
pub(super) fn names(page: &Page<'_>) -> Markup {
    html! {
        ul.legend {
            @for (index, group) in page.groups.iter().enumerate() {
                li { span.swatch style=(format!("background:{}", crate::chart::color(index))) {} (group.label) }
            }
        }
    }
}

/// A curve a recipe: as recorded, or the mean over seeds.
pub(super) fn means(page: &Page<'_>, key: &str) -> Vec<Line> {
    let line = |(color, group): (usize, &Group<'_>)| {
        let seeds = group.seeds();
        let (points, ends) = match &seeds[..] {
            [run] => (curve(run, key, X::Epochs), Vec::new()),
            _ => {
                let runs: Vec<_> = seeds.iter().map(|run| by_epoch(run, key, &curve(run, key, X::Epochs))).collect();
                let Band { mean, ends } = band(&runs);
                (mean, ends)
            }
        };
        Line { name: group.label.clone(), color, look: Look::Bold, points, band: ends }
    };
    page.groups.iter().enumerate().map(line).filter(|line| line.points.iter().any(|(_, y)| y.is_some())).collect()
}
