//! What epochs record beside their mean reward: rewards by task, how they spread, and whether training is healthy.

use super::{Page, curves::bands};
use crate::{
    chart::{Chart, Line, Look, Points, color},
    document::figure,
    group::Group,
    measure::tag,
    pictures::{numbered, spread},
    series::{Band, X, curve, over_seeds, smooth},
};
use maud::{Markup, html};
use std::collections::BTreeSet;

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

/// Epochs whose samples are read to see how rewards spread.
const EPOCHS: usize = 60;

pub(super) fn section(page: &Page<'_>) -> Markup {
    html! { (by_task(page)) (spreads(page)) (health(page)) }
}

/// The training reward by tag of the prompt, and its parts.
fn by_task(page: &Page<'_>) -> Markup {
    let records = page.runs.iter().flat_map(|run| run.trained().map(|epoch| &epoch.record));
    let keys: BTreeSet<&str> = records.flat_map(|record| record.keys()).map(String::as_str).collect();
    let names = page.runs.iter().filter_map(|run| run.reward.as_ref());
    let rewards: BTreeSet<String> = names.map(|name| format!("reward_{name}")).collect();
    // A part has a deviation beside it, as the whole reward has; a task has none.
    let has_std = |key: &str| keys.contains(&*format!("{key}_std"));
    let parts: BTreeSet<&str> = keys.iter().filter(|key| key.starts_with("reward_") && has_std(key)).copied().collect();
    html! {
        @for own in &rewards {
            @let is_task = |key: &&&str| key.starts_with(&format!("{own}_")) && !key.ends_with("_std") && !parts.contains(*key);
            @let title = if rewards.len() > 1 { format!("Reward by task: {own}") } else { "Training reward by task".into() };
            (tiles(page, &title, &keys.iter().filter(is_task).copied().collect::<Vec<_>>(), &format!("{own}_")))
        }
        (tiles(page, "Parts of the reward", &parts.into_iter().filter(|key| !rewards.contains(*key)).collect::<Vec<_>>(), "reward_"))
    }
}

/// A figure a key, all in one frame. What follows `prefix` is its name.
fn tiles(page: &Page<'_>, title: &str, keys: &[&str], prefix: &str) -> Markup {
    let chart = |key: &&str| Chart {
        title: tag(key.strip_prefix(prefix).unwrap_or(key)),
        x: "epoch".into(),
        y: "mean reward".into(),
        lines: page.groups.iter().enumerate().flat_map(|(color, group)| averages(color, group, key)).collect(),
        frame: None,
    };
    let mut charts: Vec<Chart> = keys.iter().map(chart).filter(|chart| !chart.is_empty()).collect();
    let frame = Chart::frame_of(&charts);
    for chart in &mut charts {
        chart.frame = frame;
    }
    html! {
        @if !charts.is_empty() {
            h3 { (title) }
            div.small-figures { @for chart in &charts { (figure(&chart.title, chart.small(), html! {})) } }
            p.caption {
                @if page.single().is_some() { "Thin: each epoch. Bold: the average. " }
                "An epoch draws few prompts of a task, or none: expect noise. "
                @if page.single().is_none() { (bands(page)) }
            }
            @if page.groups.len() > 1 { (names(page)) }
        }
    }
}

/// Of one run its epochs and their average, of several seeds the mean of their averages.
fn averages(color: usize, group: &Group<'_>, key: &str) -> Vec<Line> {
    let line = |look, points, band| Line { name: group.label.clone(), color, look, points, band };
    let seeds = group.seeds();
    let mut lines = if let [run] = seeds[..] {
        let raw = curve(run, key, X::Epochs);
        vec![line(Look::Bold, smooth(&raw), Vec::new()), line(Look::Thin, raw, Vec::new())]
    } else {
        let Band { mean, ends } = over_seeds(&seeds, key, |run| smooth(&curve(run, key, X::Epochs)));
        vec![line(Look::Bold, mean, ends)]
    };
    lines.retain(|line| line.points.iter().any(|(_, y)| y.is_some()));
    lines
}

/// How the rewards of an epoch spread, of one run.
fn spreads(page: &Page<'_>) -> Markup {
    let Some(run) = page.single() else { return html! {} };
    let logs = numbered(&run.folder.samples(), "jsonl");
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
                li { span.swatch style=(format!("background:{}", color(index))) {} (group.label) }
            }
        }
    }
}

/// A curve a recipe: as recorded, or the mean over seeds.
pub(super) fn means(page: &Page<'_>, key: &str) -> Vec<Line> {
    let line = |(color, group): (usize, &Group<'_>)| {
        let seeds = group.seeds();
        let Band { mean: points, ends } = if let [run] = seeds[..] {
            Band { mean: curve(run, key, X::Epochs), ends: Vec::new() }
        } else {
            over_seeds(&seeds, key, |run| curve(run, key, X::Epochs))
        };
        Line { name: group.label.clone(), color, look: Look::Bold, points, band: ends }
    };
    page.groups.iter().enumerate().map(line).filter(|line| line.points.iter().any(|(_, y)| y.is_some())).collect()
}
