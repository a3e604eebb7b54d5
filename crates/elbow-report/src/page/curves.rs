//! Rewards over training, against epochs, images and time.

use super::Page;
use crate::{
    chart::{Chart, Line, Look},
    document::{figure, switch},
    group::Group,
    interval::KIND,
    measure::{self, Measure},
    number,
    run::Run,
    series::{Band, MOST, SMOOTHING, X, band, curve, held_out, over_seeds, recorded, smooth},
};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn section(page: &Page<'_>) -> Markup {
    if page.runs.iter().all(|run| run.last() == 0) {
        return html! { p { "No epoch was trained yet: there are no curves." } };
    }
    html! {
        (rewards(page))
        (held_out_scores(page))
        (numbers(page))
    }
}

/// The training reward, one figure for each reward that runs have, against whatever the reader chooses.
fn rewards(page: &Page<'_>) -> Markup {
    let names: BTreeSet<&String> = page.runs.iter().filter_map(|run| run.reward.as_ref()).collect();
    html! {
        @for (index, name) in names.into_iter().enumerate() {
            @let key = format!("reward_{name}");
            @let charts: Vec<(&str, Chart)> = page.xs.iter().map(|x| (x.word(), chart(page, &key, name, *x))).collect();
            @if charts.iter().all(|(_, chart)| !chart.is_empty()) { figure.card {
                h3 { "Training reward" @if name != "geneval" { ": " (measure::words(name)) } }
                (switch(&format!("x{index}"), &charts))
                figcaption { (reward_caption(page, name)) }
            } }
        }
    }
}

fn chart(page: &Page<'_>, key: &str, name: &str, x: X) -> Chart {
    let title = format!("Mean reward {name} of the pictures of each epoch, against {}", x.label());
    Chart { title, x: x.label().into(), y: "mean reward".into(), lines: lines(page, key, x), ..Chart::default() }
}

/// One color a recipe: of one run its epochs and their average, of several seeds their averages, the mean of these and its interval.
fn lines(page: &Page<'_>, key: &str, x: X) -> Vec<Line> {
    let mut lines = Vec::new();
    let alone = page.groups.len() == 1;
    for (color, group) in page.groups.iter().enumerate() {
        let name = |what: String| if alone { what } else { group.label.clone() };
        let line = |what: String, look, points, band| Line { name: name(what), color, look, points, band };
        let seeds = group.seeds();
        let average = |run: &Run| smooth(&curve(run, key, x));
        if let [run] = seeds[..] {
            lines.push(line("each epoch".into(), Look::Thin, curve(run, key, x), Vec::new()));
            lines.push(line("average".into(), Look::Bold, average(run), Vec::new()));
        } else {
            for run in &seeds {
                lines.push(line(format!("seed {}", run.seed().unwrap_or("?")), Look::Thin, average(run), Vec::new()));
            }
            let Band { mean, ends } = over_seeds(&seeds, key, average);
            lines.push(line("mean of seeds".into(), Look::Bold, mean, ends));
        }
    }
    lines.retain(|line| line.points.iter().any(|(_, y)| y.is_some()));
    lines
}

fn reward_caption(page: &Page<'_>, name: &str) -> Markup {
    let seeds =
        page.groups.iter().any(|group| group.seeds().len() > 1 && group.first().reward.as_deref() == Some(name));
    let long = page.runs.iter().any(|run| run.trained().count() > MOST);
    let dense = page
        .runs
        .iter()
        .any(|run| run.reward.as_deref() == Some("geneval") && run.recipe.field("reward.mode") == Some("dense"));
    html! {
        "What the run pleases: the mean over the pictures of an epoch, which were drawn for training prompts with the weights of that moment. "
        @if name == "geneval" && dense { "It gives credit for what is partly right, so it is above the strict score. " }
        "The average is exponential, with a weight of " (SMOOTHING) " for what was before. "
        @if seeds { "Thin: the averages of single seeds. Bold: their mean. " (bands(page)) }
        @if page.xs.len() > 2 { "Time is drawing and training as recorded; evaluations and saving come on top. " }
        @if long { "Long curves are thinned: each stretch keeps its lowest and its highest epoch." }
    }
}

/// Held-out scores, for one run all measures in one figure; for several a figure a measure.
fn held_out_scores(page: &Page<'_>) -> Markup {
    let mut charts: Vec<(String, Chart)> = Vec::new();
    let chart = |title: &str, lines| Chart {
        title: title.into(),
        x: "epoch".into(),
        y: "score".into(),
        lines,
        ..Chart::default()
    };
    if let Some(run) = page.single() {
        // Scores between 0 and 1 share a figure, others have their own.
        let share = |measure: &&Measure| run.held_out(&measure.key()).values().all(|score| (0.0..=1.0).contains(score));
        let line = |(color, measure): (usize, &Measure)| Line {
            name: measure.words(),
            color,
            look: Look::Dots,
            points: held_out(run, &measure.key(), X::Epochs),
            band: Vec::new(),
        };
        let (shared, own): (Vec<&Measure>, Vec<&Measure>) = run.measures.iter().partition(share);
        let together: Vec<Line> = shared.into_iter().enumerate().map(line).collect();
        charts
            .push(("Scores on held-out prompts".into(), chart("Scores on held-out prompts against epochs", together)));
        for measure in own {
            let title = format!("Held-out {}", measure.words());
            charts.push((title.clone(), chart(&title, vec![line((0, measure))])));
        }
    } else {
        let mut names: Vec<&str> = Vec::new();
        for measure in page.runs.iter().flat_map(|run| &run.measures) {
            if !names.contains(&measure.name.as_str()) {
                names.push(&measure.name);
            }
        }
        for name in names {
            let title = format!("Held-out {}", measure::words(name));
            charts.push((title.clone(), chart(&title, held_out_lines(&page.groups, &format!("eval_reward_{name}")))));
        }
    }
    // One score alone is no curve.
    charts.retain(|(_, chart)| chart.lines.iter().any(|line| line.points.len() > 1));
    let many = charts.len() > 1;
    html! {
        div.halves[many] {
            @for (title, chart) in &charts {
                (figure(title, html! { (chart.legend()) @if many { (chart.medium()) } @else { (chart.large()) } }, html! {
                    @if !many {
                        "The same prompts and start noise each time, with the averaged weights. Epoch 0 is the base. "
                        @if chart.lines.iter().all(|line| line.points.len() == 2) {
                            "Measured at the ends alone; eval.measure.every = 10 measures in between too. "
                        }
                        (bands(page))
                    }
                }))
            }
        }
        @if many {
            p.caption {
                "The same prompts and start noise each time, with the averaged weights. Epoch 0 is the base. "
                (bands(page))
            }
        }
    }
}

/// What a band is, if there is one.
pub(super) fn bands(page: &Page<'_>) -> Markup {
    let count = |least: usize| page.groups.iter().any(|group| group.seeds().len() >= least);
    html! {
        @if count(3) { "Band: " (KIND) ", where there are at least three. " }
        @else if count(2) { "Of two seeds no band is drawn: the interval of their mean is 12.7 standard errors wide. " }
    }
}

fn held_out_lines(groups: &[Group<'_>], key: &str) -> Vec<Line> {
    let line = |(color, group): (usize, &Group<'_>)| {
        let runs: Vec<BTreeMap<u64, (f64, Option<f64>)>> = group
            .seeds()
            .iter()
            .map(|run| run.held_out(key).into_iter().map(|(epoch, y)| (epoch, (epoch as f64, Some(y)))).collect())
            .collect();
        let Band { mean, ends } = band(&runs);
        Line { name: group.label.clone(), color, look: Look::Dots, points: mean, band: ends }
    };
    groups.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// The curves as numbers, for those who do not see them.
fn numbers(page: &Page<'_>) -> Markup {
    let Some(run) = page.single() else { return html! {} };
    let Some(reward) = &run.reward else { return html! {} };
    let raw = curve(run, &format!("reward_{reward}"), X::Epochs);
    let average = smooth(&raw);
    let every = raw.len().div_ceil(30).max(1);
    let score = |value: Option<f64>| value.map_or("–".into(), number::score);
    let key = format!("reward_{reward}");
    let rows = recorded(run, &key).zip(raw.iter().zip(&average)).enumerate();
    let rows = rows.filter(|(index, _)| index.is_multiple_of(every) || index + 1 == raw.len());
    let headline = run.headline().map(|measure| (measure.words(), run.held_out(&measure.key())));
    html! {
        details {
            summary { "The curve as a table" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th.number { "epoch" } th.number { "pictures" } th.number { "time" } th.number { "reward" } th.number { "average" }
                            @if let Some((name, _)) = &headline { th.number { "held-out " (name) } }
                        }
                    }
                    tbody {
                        @for (_, (epoch, ((_, raw), (_, average)))) in rows {
                            tr {
                                td.number { (epoch.number) }
                                td.number { (number::count(epoch.images)) }
                                td.number { (number::duration(epoch.seconds)) }
                                td.number { (score(*raw)) }
                                td.number { (score(*average)) }
                                @if let Some((_, scores)) = &headline {
                                    td.number { (scores.get(&epoch.number).copied().map(number::score).unwrap_or_default()) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
