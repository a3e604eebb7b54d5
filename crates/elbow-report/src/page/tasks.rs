//! Held-out scores by task, before and after, as bars in a table.

use super::{Page, figure};
use crate::{
    chart::color,
    group::Group,
    interval::{Interval, KIND},
    measure::{Measure, meaning, tag},
    number::{capital, score},
    page::summary::plus_minus,
    run::{Run, number},
};
use maud::{Markup, html};

pub(super) fn section(page: &Page<'_>) -> Markup {
    let mut measures: Vec<&Measure> = Vec::new();
    let first = page.runs[0].headline();
    for measure in first.into_iter().chain(page.runs.iter().flat_map(|run| &run.measures)) {
        if !measure.tags.is_empty() && !measures.iter().any(|other| other.name == measure.name) {
            measures.push(measure);
        }
    }
    html! {
        @for (index, measure) in measures.iter().enumerate() {
            @if index < 2 { (bars(page, measure)) }
            @else { details { summary { (measure.words()) " by task" } (bars(page, measure)) } }
        }
    }
}

/// One bar: what it is of, its color, and its value.
struct Bar {
    name: String,
    color: String,
    value: Interval,
    /// What it was before, where that has no bar of its own.
    before: Option<f64>,
}

fn bars(page: &Page<'_>, measure: &Measure) -> Markup {
    let keys = measure.tags.iter().map(|name| (tag(name), measure.tag_key(name)));
    let rows: Vec<(String, Vec<Bar>)> =
        keys.chain([("mean".into(), measure.key())]).map(|(name, key)| (name, of_key(page, &key))).collect();
    let values = || rows.iter().flat_map(|(_, bars)| bars.iter().map(|bar| bar.value.mean));
    if values().next().is_none() {
        return html! {};
    }
    let (low, high) = values().fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    // Shares are drawn out of one.
    let high = if low >= 0.0 && high <= 1.0 { 1.0 } else { high };
    let share = |value: f64| 100.0 * (value.clamp(low, high) - low) / (high - low).max(f64::MIN_POSITIVE);
    let seeds = page.groups.iter().any(|group| group.seeds().len() > 2);
    let table = html! {
        table.bars.many[page.groups.len() > 1] aria-label=(format!("{} by task, before and after training", measure.words())) {
            @for (name, bars) in &rows {
                tbody.total[name == "mean"] {
                    @for (index, bar) in bars.iter().enumerate() {
                        tr {
                            @if index == 0 { th scope="rowgroup" rowspan=(bars.len()) { (name) } }
                            td.of { (bar.name) }
                            td.track {
                                @let (start, end) = (share(bar.value.mean.min(0.0)), share(bar.value.mean.max(0.0)));
                                span.bar.mark style=(format!("left:{start:.2}%;width:{:.2}%;background:{}", end - start, bar.color)) {}
                                @if let Some(before) = bar.before { span.before style=(format!("left:{:.2}%", share(before))) {} }
                                @if let Some(half) = bar.value.half.filter(|_| bar.value.count > 2) {
                                    @let (from, to) = (share(bar.value.mean - half), share(bar.value.mean + half));
                                    span.whisker style=(format!("left:{from:.2}%;width:{:.2}%", to - from)) {}
                                }
                            }
                            td.number { (plus_minus(bar.value)) }
                        }
                    }
                }
            }
        }
    };
    let title = format!("{} by task, on held-out prompts", capital(&measure.words()));
    figure(
        &title,
        table,
        html! {
            @if let Some(meaning) = meaning(&measure.name) { (capital(meaning)) ". " }
            @if low >= 0.0 && high <= 1.0 { "Bars run from 0 to 1. " } @else { "Bars run from " (score(low)) " to " (score(high)) ". " }
            @if page.single().is_none() { "The mark on a bar is what the base scored. " }
            @if seeds { "Whiskers: " (KIND) ", where there are at least three. " }
            @if page.runs.iter().any(|run| run.tuned.is_empty()) { "A run without a tuned score was not measured after training yet. " }
        @if page.runs.iter().any(|run| !run.finished && !run.tuned.is_empty()) { "Runs that are not finished: their latest evaluation." }
        },
    )
}

/// Of one run the base and what was trained, of several every recipe, with its base as a mark.
fn of_key(page: &Page<'_>, key: &str) -> Vec<Bar> {
    let before = |run: &Run| number(&run.base, key);
    let after = |run: &Run| number(&run.tuned, key);
    let bar = |name: &str, color, value, before| Bar { name: name.into(), color, value, before };
    if let Some(run) = page.single() {
        let one = |mean| Interval { mean, half: None, count: 1 };
        let bars = [("base", "var(--base)".to_owned(), before(run)), ("tuned", color(0), after(run))];
        return bars.into_iter().filter_map(|(name, color, value)| Some(bar(name, color, one(value?), None))).collect();
    }
    let of = |(index, group): (usize, &Group<'_>)| {
        let name = if page.groups.len() == 1 { "tuned" } else { &group.label };
        Some(bar(name, color(index), group.interval(after)?, group.interval(before).map(|before| before.mean)))
    };
    page.groups.iter().enumerate().filter_map(of).collect()
}
