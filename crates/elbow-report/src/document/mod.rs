//! A page as one file: a head, sections one after the other, and a script of a few lines.

use crate::chart::Chart;
use base64::{Engine, engine::general_purpose::STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A part of a page.
pub struct Section {
    /// What links to it name.
    pub id: &'static str,
    /// Its heading.
    pub name: &'static str,
    /// Its content; an empty section is left out.
    pub body: Markup,
}

/// The page. `eyebrow` says what kind of page it is, `header` is what stands below the title.
pub fn document(eyebrow: &str, title: &str, header: Markup, sections: Vec<Section>) -> String {
    let sections: Vec<Section> = sections.into_iter().filter(|section| !section.body.0.is_empty()).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – " (eyebrow) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.eyebrow { (eyebrow) }
                    h1 { (title) }
                    (header)
                    nav aria-label="Sections" {
                        @for Section { id, name, .. } in &sections { a href=(format!("#{id}")) { (name) } }
                    }
                }
                main {
                    @for Section { id, name, body } in &sections {
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
    };
    page.into_string()
}

/// Nothing from anywhere but the page itself, and of scripts only its own, by its hash.
fn policy() -> String {
    let hash = STANDARD.encode(Sha256::digest(SCRIPT));
    format!(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    )
}

/// A figure with its title above and what is to be known of it below.
pub fn figure(title: &str, body: Markup, caption: Markup) -> Markup {
    html! {
        figure.card {
            h3 { (title) }
            (body)
            @if !caption.0.is_empty() { figcaption { (caption) } }
        }
    }
}

/// Figures of one thing against several quantities, of which a reader sees one and chooses which: each has the word it is chosen by. `id`
/// tells the switches of a page apart. The style knows four figures a switch.
pub fn switch(id: &str, charts: &[(&str, Chart)]) -> Markup {
    html! {
        div.switch role="radiogroup" aria-label="Horizontal axis" {
            @for (place, (word, _)) in charts.iter().enumerate() {
                @let input = format!("{id}-{place}");
                input type="radio" name=(id) id=(input) checked[place == 0];
                label for=(input) { (word) }
            }
            @for (place, (_, chart)) in charts.iter().enumerate() {
                div.panel data-place=(place) { (chart.legend()) (chart.large()) }
            }
        }
    }
}
