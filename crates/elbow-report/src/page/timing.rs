//! How long epochs took, and on what.

use super::Page;
use crate::{
    chart::{Chart, Line, Look, Points},
    document::figure,
    number::{duration, score},
    run::Run,
    series::{X, curve},
};
use maud::{Markup, html};
use serde_json::Value;
use std::iter;

pub(super) fn section(page: &Page<'_>) -> Markup {
    if !page.runs.iter().any(|run| run.epochs.last().is_some_and(|epoch| epoch.seconds > 0.0)) {
        return html! {};
    }
    let lines = match page.single() {
        Some(run) => [("drawing", "time_rollout"), ("training", "time_update")]
            .into_iter()
            .enumerate()
            .map(|(color, (name, key))| line(name, color, Look::Bold, curve(run, key, X::Epochs)))
            .collect(),
        None => page
            .groups
            .iter()
            .enumerate()
            .flat_map(|(color, group)| {
                // One curve of each recipe is named.
                let looks = iter::once(Look::Bold).chain(iter::repeat(Look::Thin));
                group.runs.iter().zip(looks).map(move |(run, look)| line(&group.label, color, look, whole(run)))
            })
            .collect(),
    };
    let chart = Chart {
        title: "Seconds of each epoch".into(),
        x: "epoch".into(),
        y: "seconds an epoch".into(),
        lines,
        ..Chart::default()
    };
    html! {
        (figure("Seconds an epoch", html! { (chart.legend()) (chart.large()) }, html! {
            @if page.single().is_some() { "Rewards are asked while further pictures are drawn; evaluations and saving are not counted." }
            @else { "Drawing and training, one curve a run; evaluations and saving are not counted. Times of different machines do not compare." }
        }))
        (table(page))
    }
}

fn line(name: &str, color: usize, look: Look, points: Points) -> Line {
    Line { name: name.into(), color, look, points, band: Vec::new() }
}

/// Seconds of drawing and training.
fn whole(run: &Run) -> Points {
    let seconds = |epoch: &crate::run::Epoch| Some(epoch.number("time_rollout")? + epoch.number("time_update")?);
    run.trained().map(|epoch| (epoch.number as f64, seconds(epoch))).collect()
}

/// Medians of the epochs, and the machine; a column a run.
fn table(page: &Page<'_>) -> Markup {
    let median = |run: &Run, key: &str| {
        let mut values: Vec<f64> = run.trained().filter_map(|epoch| epoch.number(key)).collect();
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        let value = values.get(half).copied()?;
        Some(if values.len().is_multiple_of(2) { f64::midpoint(values[half - 1], value) } else { value })
    };
    let times = [
        ("drawing, the median epoch", "time_rollout"),
        ("training, the median epoch", "time_update"),
        ("rewards, the median epoch", "time_reward"),
        ("planned for an epoch", "time_planned"),
    ];
    let machine = [
        ("processor", "cpu"),
        ("threads", "threads"),
        ("instructions", "instructions"),
        ("device", "device"),
        ("Elbow", "version"),
        ("commit", "commit"),
    ];
    let fact = |run: &Run, key: &str| match &run.manifest[key] {
        Value::String(text) => text.trim_start_matches("Device<").trim_end_matches('>').to_owned(),
        Value::Null => "–".into(),
        other => other.to_string(),
    };
    html! {
        div.scroll {
            table.facts {
                @if page.runs.len() > 1 { thead { tr { th {} @for name in page.names { th scope="col" { (name) } } } } }
                tbody {
                    @for (name, key) in times {
                        @if page.runs.iter().any(|run| median(run, key).is_some()) {
                            tr {
                                th scope="row" { (name) }
                                @for run in page.runs { td { (median(run, key).map_or("–".into(), duration)) } }
                            }
                        }
                    }
                    tr {
                        th scope="row" { "pictures a second, the median epoch" }
                        @for run in page.runs { td { (median(run, "images_per_second").map_or("–".into(), score)) } }
                    }
                    tr {
                        th scope="row" { "all epochs" }
                        @for run in page.runs { td { (run.epochs.last().map_or("–".into(), |epoch| duration(epoch.seconds))) } }
                    }
                    @for (name, key) in machine {
                        tr { th scope="row" { (name) } @for run in page.runs { td { (fact(run, key)) } } }
                    }
                }
            }
        }
    }
}
