//! Held-out scores by task, before and after, as bars in a table.

use super::Page;
use crate::{
    bars::{Bar, Row, bars},
    chart::color,
    document::figure,
    group::Group,
    interval::{Interval, KIND},
    measure::{Measure, meaning, tag},
    number::capital,
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
            @if index < 2 { (figure_of(page, measure)) }
            @else { details { summary { (measure.words()) " by task" } (figure_of(page, measure)) } }
        }
    }
}

fn figure_of(page: &Page<'_>, measure: &Measure) -> Markup {
    let keys = measure.tags.iter().map(|name| (tag(name), measure.tag_key(name)));
    let row = |(name, key): (String, String)| Row { total: name == "mean", bars: of_key(page, &key), name };
    let rows: Vec<Row> = keys.chain([("mean".into(), measure.key())]).map(row).collect();
    let label = format!("{} by task, before and after training", measure.words());
    let Some((table, scale)) = bars(&label, &rows, page.groups.len() > 1) else { return html! {} };
    let seeds = page.groups.iter().any(|group| group.seeds().len() > 2);
    let title = format!("{} by task, on held-out prompts", capital(&measure.words()));
    figure(
        &title,
        table,
        html! {
            @if let Some(meaning) = meaning(&measure.name) { (capital(meaning)) ". " }
            (scale)
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
    let bar = |name: &str, color, value: Interval, before| {
        let ends = value.half.filter(|_| value.count > 2).map(|half| [value.mean - half, value.mean + half]);
        Bar { name: name.into(), color, value: value.mean, interval: ends, text: plus_minus(value), before }
    };
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
