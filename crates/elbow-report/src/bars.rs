//! Bars in a table: groups of them, each with its value in words beside it.

use crate::number::score;
use maud::{Markup, html};

/// One bar: what it is of, its color, and its value.
pub struct Bar {
    /// What it is of.
    pub name: String,
    /// A color of the page's style, as [`color`](crate::chart::color) gives it.
    pub color: String,
    /// How long it is.
    pub value: f64,
    /// Its interval, drawn as a whisker.
    pub interval: Option<[f64; 2]>,
    /// The value in words.
    pub text: String,
    /// What it was before, where that has no bar of its own.
    pub before: Option<f64>,
}

/// Bars of one thing.
pub struct Row {
    /// The thing.
    pub name: String,
    /// Whether it sums the others up.
    pub total: bool,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// Bars on one scale, and that scale in words. Values between 0 and 1 are drawn out of one. `many` says that bars have long names. `None` without
/// a bar.
pub fn bars(label: &str, rows: &[Row], many: bool) -> Option<(Markup, Markup)> {
    let values = || rows.iter().flat_map(|row| row.bars.iter().map(|bar| bar.value));
    values().next()?;
    let (low, high) = values().fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    let high = if low >= 0.0 && high <= 1.0 { 1.0 } else { high };
    let share = |value: f64| 100.0 * (value.clamp(low, high) - low) / (high - low).max(f64::MIN_POSITIVE);
    let table = html! {
        table.bars.many[many] aria-label=(label) {
            @for Row { name, total, bars } in rows {
                tbody.total[*total] {
                    @for (index, bar) in bars.iter().enumerate() {
                        tr {
                            @if index == 0 { th scope="rowgroup" rowspan=(bars.len()) { (name) } }
                            td.of { (bar.name) }
                            td.track {
                                @let (start, end) = (share(bar.value.min(0.0)), share(bar.value.max(0.0)));
                                span.bar.mark style=(format!("left:{start:.2}%;width:{:.2}%;background:{}", end - start, bar.color)) {}
                                @if let Some(before) = bar.before { span.before style=(format!("left:{:.2}%", share(before))) {} }
                                @if let Some([from, to]) = bar.interval.map(|ends| ends.map(share)) {
                                    span.whisker style=(format!("left:{from:.2}%;width:{:.2}%", to - from)) {}
                                }
                            }
                            td.number { (bar.text) }
                        }
                    }
                }
            }
        }
    };
    let scale = html! {
        @if low >= 0.0 && high <= 1.0 { "Bars run from 0 to 1. " } @else { "Bars run from " (score(low)) " to " (score(high)) ". " }
    };
    Some((table, scale))
}
