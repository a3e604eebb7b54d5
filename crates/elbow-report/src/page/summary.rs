//! What happened, in a sentence, in numbers, and what to be wary of.

use super::Page;
use crate::{
    chart::color,
    group::Group,
    interval::{Interval, KIND},
    measure::{Measure, meaning},
    number::{self, capital, count, duration, plural, score},
    run::{Run, number as value},
    series::{X, curve, smooth},
};
use maud::{Markup, html};

pub(super) fn header(page: &Page<'_>) -> Markup {
    match page.single() {
        Some(run) => one(run),
        None => several(page),
    }
}

fn one(run: &Run) -> Markup {
    html! {
        p.lede { (sentence(run)) }
        (about())
        (tiles(run))
        (meanings(&run.measures))
        (warnings([("", run)].into_iter()))
    }
}

/// What this is about, for somebody who has never seen the project.
fn about() -> Markup {
    html! {
        p.lead {
            "Elbow trains models that draw pictures by reinforcement learning: in every epoch the model draws pictures for prompts, a reward \
             scores them, and the weights move toward what scored better than other pictures of the same prompt."
        }
    }
}

/// What a run did, in a sentence or two.
fn sentence(run: &Run) -> Markup {
    let last = run.last();
    let (pictures, seconds) = run.spent();
    html! {
        @if last == 0 {
            "The base was measured, and nothing was trained yet with the recipe " b { (run.recipe.name) } ". "
        } @else {
            "The recipe " b { (run.recipe.name) }
            @if run.finished { " trained the model for " (plural(last as usize, "epoch")) }
            @else if let Some(epochs) = run.recipe.epochs() { " has trained the model for " (last) " of " (plural(epochs as usize, "epoch")) " so far" }
            @else { " has trained the model for " (plural(last as usize, "epoch")) }
            ", on " (count(pictures)) " pictures that it drew"
            @if seconds > 0.0 { " in " (duration(seconds)) }
            ". "
        }
        (change(run))
    }
}

/// How the score changed, of held-out prompts if they were measured twice, else of training.
fn change(run: &Run) -> Markup {
    let both = |measure: &Measure| Some((value(&run.base, &measure.key())?, value(&run.tuned, &measure.key())?));
    let headline = run.headline().and_then(|measure| Some((measure, both(measure)?)));
    let judge = run.measures.iter().find(|measure| measure.name == "judge" && Some(*measure) != run.headline());
    if let Some((measure, (base, tuned))) = headline {
        return html! {
            "On prompts that it never trained on, the " b { (measure.words()) } " " (moved(base, tuned))
            @if let Some((base, tuned)) = judge.and_then(both) {
                "; the " b { "judge" } ", an independent detector, " (moved(base, tuned))
            }
            "."
        };
    }
    let rewards = trained_rewards(run);
    html! {
        @if let Some((first, last)) = rewards {
            "Its training reward " (moved(first, last)) " (first epoch, and the average at the end)."
            " It was not measured on held-out prompts after training yet."
        } @else if run.last() > 0 {
            "No epoch has a reward."
        } @else if let Some(base) = run.headline().and_then(|measure| value(&run.base, &measure.key())) {
            "The base scores " (score(base)) " on held-out prompts."
        }
    }
}

/// The reward of the first epoch, and the average at the last.
fn trained_rewards(run: &Run) -> Option<(f64, f64)> {
    let raw = curve(run, &format!("reward_{}", run.reward.as_ref()?), X::Epochs);
    let first = raw.iter().find_map(|(_, y)| *y)?;
    Some((first, smooth(&raw).iter().rev().find_map(|(_, y)| *y)?))
}

/// "rose from 0.310 to 0.943".
fn moved(from: f64, to: f64) -> Markup {
    let (from_text, to_text) = (score(from), score(to));
    html! {
        @if from_text == to_text { "stayed at " b { (to_text) } }
        @else if to > from { "rose from " (from_text) " to " b { (to_text) } }
        @else { "fell from " (from_text) " to " b { (to_text) } }
    }
}

/// The numbers that a reader looks for first.
fn tiles(run: &Run) -> Markup {
    let measures =
        run.headline().into_iter().chain(run.measures.iter().filter(|measure| Some(*measure) != run.headline()));
    let scores: Vec<(String, Option<f64>, f64)> = measures
        .filter_map(|m| {
            Some((format!("held-out {}", m.words()), value(&run.base, &m.key()), value(&run.tuned, &m.key())?))
        })
        .take(2)
        .collect();
    let (pictures, seconds) = run.spent();
    html! {
        ul.tiles {
            @for (name, base, tuned) in scores {
                li {
                    span.label { (name) }
                    span.value { (score(tuned)) }
                    @if let Some(base) = base { span.note { "base " (score(base)) ", " (signed(tuned - base)) } }
                }
            }
            @if let Some((first, last)) = trained_rewards(run) {
                li { span.label { "training reward" } span.value { (score(last)) } span.note { "first epoch " (score(first)) } }
            }
            li {
                span.label { "epochs" }
                span.value { (run.last()) }
                span.note {
                    @if run.finished { "finished" } @else if let Some(epochs) = run.recipe.epochs() { "of " (epochs) ", not finished" }
                }
            }
            li {
                span.label { "pictures drawn" }
                span.value { (count(pictures)) }
                @if seconds > 0.0 { span.note { "in " (duration(seconds)) } }
            }
        }
    }
}

fn signed(change: f64) -> String {
    if change > 0.0 { format!("+{}", score(change)) } else { score(change) }
}

/// What the measures mean, where that is known.
fn meanings(measures: &[Measure]) -> Markup {
    let known: Vec<(String, &str)> = measures.iter().filter_map(|m| Some((m.words(), meaning(&m.name)?))).collect();
    html! {
        @if !known.is_empty() {
            p.meanings {
                @for (index, (name, meaning)) in known.iter().enumerate() {
                    @if index > 0 { " " }
                    b { (capital(name)) } ": " (meaning) "."
                }
            }
        }
    }
}

fn several(page: &Page<'_>) -> Markup {
    let Page { groups, runs, .. } = page;
    let measures = common(runs);
    let first = measures.first();
    let mut ranked: Vec<(&Group<'_>, Interval)> = Vec::new();
    for group in groups {
        let ends = first.and_then(|measure| group.interval(|run| value(&run.tuned, &measure.key())));
        ranked.extend(ends.map(|ends| (group, ends)));
    }
    ranked.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    html! {
        p.lede {
            @if let ([group], Some(measure), Some(ends)) = (&groups[..], first, ranked.first().map(|(_, ends)| *ends)) {
                (plural(runs.len(), "run")) " of the recipe " b { (group.label) } ". On prompts that they never trained on, the "
                b { (measure.words()) } " " (change_of_mean(group, &measure.key(), ends)) "."
            } @else {
                (plural(runs.len(), "run")) " of " (plural(groups.len(), "recipe")) ". "
                @if let (Some(measure), [(best, ends), others @ ..]) = (first, &ranked[..]) {
                    "By the " b { (measure.words()) } " on held-out prompts "
                    b { (best.label) } " ends highest, at " (with_seeds(*ends))
                    @if let Some((last, ends)) = others.last() { ", and " b { (last.label) } " lowest, at " (with_seeds(*ends)) }
                    "."
                }
            }
        }
        (about())
        (results(page, &measures))
        (meanings(&measures))
        (warnings(page.names.iter().map(String::as_str).zip(*runs)))
        @for group in groups {
            @if group.seeds().len() < group.runs.len() {
                p.warning { "Some runs of " (group.label) " have the same seed: means and intervals count one run a seed." }
            }
        }
    }
}

/// "rose from 0.310 to 0.943 ± 0.016 (3 seeds)".
fn change_of_mean(group: &Group<'_>, key: &str, ends: Interval) -> Markup {
    let before = group.interval(|run| value(&run.base, key)).map(|before| before.mean);
    html! {
        @match before {
            Some(before) if before < ends.mean => { "rose from " (score(before)) " to " }
            Some(before) if before > ends.mean => { "fell from " (score(before)) " to " }
            _ => { "ends at " }
        }
        (with_seeds(ends))
    }
}

/// Measures that every run has, what the first run is to please before the others.
fn common(runs: &[Run]) -> Vec<Measure> {
    let everywhere =
        |measure: &&Measure| runs.iter().all(|run| run.measures.iter().any(|other| other.name == measure.name));
    let first = runs[0].headline();
    let mut measures: Vec<Measure> = first.into_iter().filter(everywhere).cloned().collect();
    measures.extend(runs[0].measures.iter().filter(|measure| Some(*measure) != first).filter(everywhere).cloned());
    measures
}

/// "0.943 ± 0.016 (3 seeds)".
fn with_seeds(interval: Interval) -> Markup {
    html! { b { (plus_minus(interval)) } @if interval.count > 1 { " (" (interval.count) " seeds)" } }
}

/// A mean, with its interval if there is one.
pub(super) fn plus_minus(Interval { mean, half, .. }: Interval) -> String {
    match half {
        Some(half) => format!("{} ± {}", score(mean), score(half)),
        None => score(mean),
    }
}

/// The same without an interval if runs agree, as they do on a base that they share.
fn base(interval: Interval) -> String {
    let agree = interval.half.is_some_and(|half| half <= 1e-12);
    plus_minus(Interval { half: interval.half.filter(|_| !agree), ..interval })
}

/// Every recipe in a row, and every run below it.
fn results(page: &Page<'_>, measures: &[Measure]) -> Markup {
    let measures = &measures[..measures.len().min(2)];
    let keys: Vec<String> = measures.iter().map(Measure::key).collect();
    html! {
        div.scroll {
            table.results {
                thead {
                    tr {
                        th { "recipe" } th.number { "seeds" }
                        @for measure in measures { th.number { (measure.words()) ", base" } th.number { (measure.words()) ", tuned" } }
                        th.number { "epochs" } th.number { "pictures" } th.number { "time" }
                    }
                }
                tbody {
                    @for (index, group) in page.groups.iter().enumerate() {
                        tr {
                            th scope="row" { span.swatch style=(format!("background:{}", color(index))) {} (group.label) }
                            td.number { (group.seeds().len()) }
                            @for cell in of_group(group, &keys) { td.number { (cell) } }
                        }
                        @if group.runs.len() > 1 {
                            @for (run, name) in page.runs.iter().zip(page.names).filter(|(run, _)| group.has(run)) {
                                tr.part {
                                    th scope="row" { (name) }
                                    td.number { "seed " (run.seed().unwrap_or("?")) }
                                    @for cell in of_run(run, &keys) { td.number { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if page.groups.iter().any(|group| group.seeds().len() > 1) { p.meanings { "±: " (KIND) "." } }
    }
}

/// Scores before and after, epochs, pictures and time: means over seeds.
fn of_group(group: &Group<'_>, keys: &[String]) -> Vec<String> {
    let score = |interval: Option<Interval>, text: fn(Interval) -> String| interval.map_or("–".into(), text);
    let mut cells = Vec::new();
    for key in keys {
        cells.push(score(group.interval(|run| value(&run.base, key)), base));
        cells.push(score(group.interval(|run| value(&run.tuned, key)), plus_minus));
    }
    cells.push(epochs(&group.runs));
    cells.push(score(group.interval(|run| Some(run.spent().0)), |pictures| count(pictures.mean)));
    cells.push(score(group.interval(|run| Some(run.spent().1)), |seconds| duration(seconds.mean)));
    cells
}

/// The same of one run.
fn of_run(run: &Run, keys: &[String]) -> Vec<String> {
    let (pictures, seconds) = run.spent();
    let both = keys.iter().flat_map(|key| [value(&run.base, key), value(&run.tuned, key)]);
    let scores = both.map(|value| value.map_or("–".into(), score));
    scores.chain([epochs(&[run]), count(pictures), duration(seconds)]).collect()
}

/// "12", or "7 of 12" where runs are not finished.
fn epochs(runs: &[&Run]) -> String {
    let least = runs.iter().map(|run| run.last()).min().unwrap_or(0);
    match runs[0].recipe.epochs() {
        Some(epochs) if runs.iter().any(|run| !run.finished) => format!("{least} of {epochs}"),
        _ => least.to_string(),
    }
}

/// What to be wary of in runs.
fn warnings<'a>(runs: impl Iterator<Item = (&'a str, &'a Run)>) -> Markup {
    let all: Vec<(String, &str)> =
        runs.flat_map(|(name, run)| wary(run).into_iter().map(move |text| (text, name))).collect();
    html! {
        @for (text, name) in all {
            p.warning { @if !name.is_empty() { b { (name) ": " } } (text) }
        }
    }
}

fn wary(run: &Run) -> Vec<String> {
    let mut texts = run.notes.clone();
    let trained: Vec<_> = run.trained().collect();
    let of = |bad: usize| format!("{} of {}", number::count(bad as f64), plural(trained.len(), "epoch"));
    let missing: f64 = trained.iter().filter_map(|epoch| epoch.number("reward_missing")).sum();
    if missing > 0.0 {
        texts.push(format!("{} rewards are missing: their pictures were left out of training.", count(missing)));
    }
    if let Some(key) = run.reward.as_ref().map(|name| format!("reward_{name}")) {
        let without = trained.iter().filter(|epoch| epoch.number(&key).is_none()).count();
        if without > 0 {
            texts.push(format!("{} have no reward at all: the curve has gaps there.", of(without)));
        }
    }
    let idle = trained.iter().filter(|epoch| epoch.number("trained_samples") == Some(0.0)).count();
    if idle > 0 {
        texts.push(format!("{} trained nothing: rewards were missing, or agreed within every group.", of(idle)));
    }
    let broken = |key: &str| {
        let not_finite = |epoch: &&&crate::run::Epoch| {
            epoch.record.get(key).is_some_and(serde_json::Value::is_null)
                && epoch.number("trained_samples") != Some(0.0)
        };
        trained.iter().filter(not_finite).count()
    };
    for (key, what) in [("policy_loss", "a loss"), ("grad_norm", "a gradient")] {
        if broken(key) > 0 {
            texts.push(format!("{} have {what} that is not a finite number.", of(broken(key))));
        }
    }
    let gain = |measure: &Measure| Some(value(&run.tuned, &measure.key())? - value(&run.base, &measure.key())?);
    if let Some(headline) = run.headline()
        && let Some(judge) = run.measures.iter().find(|measure| measure.name == "judge" && *measure != headline)
        && let (Some(up), Some(down)) = (gain(headline), gain(judge))
        && up > 0.0
        && down < -0.01
    {
        texts.push(format!(
            "The {} rose and the judge fell by {}: the pictures please the reward and show less of what their prompts say. The radar has \
             more.",
            headline.words(),
            score(-down)
        ));
    }
    texts
}
