//! The page: a head, one section after the other, and a script of a few lines.

mod curves;
mod gallery;
mod radar;
mod recipes;
mod summary;
mod tasks;
mod timing;
mod training;

use crate::{group::Group, number, run::Run, series::X};
use base64::{Engine, engine::general_purpose::STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What every section is made of.
struct Page<'a> {
    runs: &'a [Run],
    names: &'a [String],
    groups: Vec<Group<'a>>,
    xs: Vec<X>,
}

impl Page<'_> {
    /// The one run, if it is one.
    fn single(&self) -> Option<&Run> {
        if let [run] = self.runs { Some(run) } else { None }
    }
}

/// Everything about some runs, each with a name of its own.
pub(crate) fn page(runs: &[Run], names: &[String]) -> Markup {
    let page = Page { runs, names, groups: Group::all(runs), xs: X::all(runs) };
    let title = match (names, &page.groups[..]) {
        ([name], _) => name.clone(),
        (_, [group]) => format!("{}, {}", group.label, number::plural(runs.len(), "run")),
        (_, groups) => format!("{} recipes compared", groups.len()),
    };
    let sections: Vec<(&str, &str, Markup)> = [
        ("curves", "Curves", curves::section(&page)),
        ("pictures", "Before and after", gallery::before_and_after(&page)),
        ("tasks", "Tasks", tasks::section(&page)),
        ("gallery", "Gallery", gallery::by_reward(&page)),
        ("radar", "Radar", radar::section(&page)),
        ("training", "Training in detail", training::section(&page)),
        ("recipe", if page.groups.len() > 1 { "Recipes" } else { "Recipe" }, recipes::section(&page)),
        ("timing", "Timing", timing::section(&page)),
    ]
    .into_iter()
    .filter(|(_, _, body)| !body.0.is_empty())
    .collect();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – Elbow report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.eyebrow { "Elbow report" }
                    h1 { (title) }
                    (summary::header(&page))
                    nav aria-label="Sections" {
                        @for (id, name, _) in &sections { a href=(format!("#{id}")) { (name) } }
                    }
                }
                main {
                    @for (id, name, body) in &sections {
                        section id=(id) { h2 { (name) } (body) }
                    }
                }
                footer {
                    p {
                        "Made by " code { "elbow report" } ", version " (env!("CARGO_PKG_VERSION"))
                        ". The page is one file and asks no network; pictures are inside it, at most 160 pixels wide."
                    }
                }
                div #tip hidden {}
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// Nothing from anywhere but the page itself, and of scripts only its own, by its hash.
fn policy() -> String {
    let hash = STANDARD.encode(Sha256::digest(SCRIPT));
    format!(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    )
}

/// A figure with its title above and what is to be known of it below.
fn figure(title: &str, body: Markup, caption: Markup) -> Markup {
    html! {
        figure.card {
            h3 { (title) }
            (body)
            @if !caption.0.is_empty() { figcaption { (caption) } }
        }
    }
}
