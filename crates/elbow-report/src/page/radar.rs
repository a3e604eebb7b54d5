//! What tells that pictures please the reward and nothing else: distance from the base, diversity, statistics of pictures, and what other
//! judges say.

use super::{
    Page,
    training::{means, names},
};
use crate::{
    chart::{Chart, Line, Look},
    document::figure,
    measure::{Measure, words},
    run::Run,
    series::band,
};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

/// Differences of scores that an axis shows at least.
const LEAST: f64 = 0.05;

pub(super) fn section(page: &Page<'_>) -> Markup {
    let mut charts: Vec<(String, String, Chart)> = Vec::new();
    if let Some((title, note, lines)) = gap(page) {
        let y = "difference of scores".into();
        let mut chart = Chart { title: title.clone(), x: "epoch".into(), y, lines, ..Chart::default() };
        let [x, y] = chart.frame();
        chart.frame = Some([x, y.around_zero(LEAST)]);
        charts.push((title, note, chart));
    }
    let keys: BTreeSet<&str> = page
        .runs
        .iter()
        .flat_map(|run| run.epochs.iter().flat_map(|epoch| epoch.record.keys()))
        .map(String::as_str)
        .collect();
    for key in keys {
        let Some((title, note)) = about(key) else { continue };
        let lines = means(page, key);
        let chart = Chart { title: title.clone(), x: "epoch".into(), y: key.into(), lines, ..Chart::default() };
        if !chart.is_empty() {
            charts.push((title, note, chart));
        }
    }
    if charts.is_empty() {
        return html! {};
    }
    let missing = |prefix: &str| {
        !page.runs.iter().any(|run| run.epochs.iter().any(|e| e.record.keys().any(|k| k.starts_with(prefix))))
    };
    html! {
        p.lead {
            "A policy can please its reward with pictures that nobody wants. These curves tell early: distance from the base, and what \
             judges that are not trained on say beside the reward."
        }
        div.small-figures { @for (title, note, chart) in &charts { (figure(title, chart.small(), html! { (note) })) } }
        @if page.groups.len() > 1 { (names(page)) }
        @if missing("radar_") && missing("diversity") {
            p.caption { @if page.single().is_some() { "This run" } @else { "These runs" } " recorded no statistics of pictures and no diversity (" code { "radar_…" } ", " code { "diversity…" } ")." }
        }
    }
}

/// Title and explanation of a key that belongs here.
fn about(key: &str) -> Option<(String, String)> {
    let plain = |key: &str| key.replace('_', " ");
    if key == "kl_loss" {
        return Some(("Distance from the base (KL)".into(), "The penalty’s estimate, before its weight.".into()));
    }
    if key == "kl_reference" {
        return Some(("Distance from the base".into(), "Mean squared distance of velocities (kl_reference).".into()));
    }
    if let Some(name) = key.strip_prefix("radar_") {
        return Some((plain(name), format!("Recorded as {key}.")));
    }
    key.starts_with("diversity").then(|| (plain(key), "How far pictures of one prompt lie apart.".into()))
}

/// Judge minus reward on held-out prompts, where runs have both.
fn gap(page: &Page<'_>) -> Option<(String, String, Vec<Line>)> {
    let reward: &Measure = page.runs[0].headline()?;
    if reward.name == "judge" {
        return None;
    }
    let of = |run: &Run| -> BTreeMap<u64, (f64, Option<f64>)> {
        let judge = run.held_out("eval_reward_judge");
        let gap = |(epoch, score): (u64, f64)| Some((epoch, (epoch as f64, Some(judge.get(&epoch)? - score))));
        run.held_out(&reward.key()).into_iter().filter_map(gap).collect()
    };
    let line = |(color, group): (usize, &crate::group::Group<'_>)| {
        let runs: Vec<_> = group.seeds().into_iter().map(of).collect();
        let over = band(&runs);
        Line { name: group.label.clone(), color, look: Look::Dots, points: over.mean, band: over.ends }
    };
    let lines: Vec<Line> = page.groups.iter().enumerate().map(line).filter(|line| line.points.len() > 1).collect();
    let name = words(&reward.name);
    let note = format!("Held-out judge minus {name}. A fall means that the reward is pleased and the judge is not.");
    (!lines.is_empty()).then(|| (format!("Judge minus {name}"), note, lines))
}
