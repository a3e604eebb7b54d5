//! What was run: the choices that matter, what differs between recipes, and every field.

use super::Page;
use crate::{
    chart::color,
    recipe::{Recipe, differences},
    run::Run,
};
use maud::{Markup, html};
use serde_json::Value;

/// What a reader asks first, and the field that answers.
const CHOICES: [(&str, &str); 16] = [
    ("model", "model.kind"),
    ("tuning", "model.tuning.kind"),
    ("prompts", "prompts.kind"),
    ("reward", "reward.kind"),
    ("objective", "objective.kind"),
    ("likelihood", "likelihood.kind"),
    ("sampler", "sampler.rule.kind"),
    ("steps", "sampler.steps"),
    ("guidance", "sampler.guidance"),
    ("advantage", "advantage.kind"),
    ("collection", "collection.kind"),
    ("prompts an epoch", "batch.groups"),
    ("pictures a prompt", "batch.group_size"),
    ("learning rate", "optimizer.learning_rate"),
    ("KL weight", "kl.weight"),
    ("seed", "seed"),
];

pub(super) fn section(page: &Page<'_>) -> Markup {
    html! {
        @if page.groups.len() > 1 { (table(page)) }
        @else { (choices(&page.runs[0].recipe, page.runs.len() == 1)) }
        @for (run, name) in page.runs.iter().zip(page.names) {
            details {
                summary { "The whole recipe" @if page.runs.len() > 1 { " of " (name) } }
                @if let Some(command) = command(run) { p { "Started with " code { (command) } } }
                pre { code { (run.recipe.text) } }
            }
        }
    }
}

fn choices(recipe: &Recipe, with_seed: bool) -> Markup {
    let known = CHOICES.iter().filter_map(|(name, path)| Some((name, recipe.field(path)?)));
    html! {
        dl.choices {
            @for (name, value) in known { @if with_seed || *name != "seed" { div { dt { (name) } dd { (value) } } } }
        }
    }
}

/// In what recipes differ: the choices, and what all have and set otherwise; then what only some have.
fn table(page: &Page<'_>) -> Markup {
    let recipes: Vec<&Recipe> = page.groups.iter().map(|group| &group.first().recipe).collect();
    let (first, others): (Vec<Row>, Vec<Row>) = differences(&recipes)
        .into_iter()
        .partition(|(path, values)| path.rsplit('.').next() == Some("kind") || values.iter().all(Option::is_some));
    html! {
        p.lead { "Fields in which the recipes differ; seeds and what a run keeps are left out. Everything else is equal." }
        (rows(page, &first))
        @if !others.is_empty() {
            details { summary { "Fields that only some of these recipes have: " (others.len()) } (rows(page, &others)) }
        }
    }
}

/// A field, and its value in each recipe.
type Row = (String, Vec<Option<String>>);

fn rows(page: &Page<'_>, rows: &[Row]) -> Markup {
    html! {
        div.scroll {
            table.differences {
                thead {
                    tr {
                        th scope="col" { "field" }
                        @for (index, group) in page.groups.iter().enumerate() {
                            th scope="col" { span.swatch style=(format!("background:{}", color(index))) {} (group.label) }
                        }
                    }
                }
                tbody {
                    @for (path, values) in rows {
                        tr {
                            th scope="row" { code { (path) } }
                            @for value in values {
                                td { @if let Some(value) = value { code { (shortened(path, value)) } } @else { span.soft { "–" } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Of a hash the first digits.
fn shortened(path: &str, value: &str) -> String {
    if path.ends_with("_sha256") { value.chars().take(12).chain(['…']).collect() } else { value.to_owned() }
}

/// The command that the run was started with, as its manifest has it.
fn command(run: &Run) -> Option<String> {
    let arguments = run.manifest["arguments"].as_array()?.iter().filter_map(Value::as_str);
    let quoted = arguments.map(|argument| {
        let plain =
            !argument.is_empty() && argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:,".contains(c));
        if plain { argument.to_owned() } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    });
    Some(["elbow".to_owned()].into_iter().chain(quoted).collect::<Vec<_>>().join(" "))
}
