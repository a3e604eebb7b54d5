//! Pictures: before and after training, and samples by their rewards.

use super::Page;
use crate::{
    number::score,
    pictures::{Gallery, Pair, Picture, galleries, pairs},
};
use maud::{Markup, html};

/// Prompts that are compared across recipes.
const ACROSS: usize = 8;

pub(super) fn before_and_after(page: &Page<'_>) -> Markup {
    match page.single() {
        Some(run) => match pairs(run) {
            Ok(pairs) => of_one(&pairs),
            Err(reason) => html! { p.empty { (reason) } },
        },
        // Runs of one recipe: those of the first stand for the others.
        None if page.groups.len() == 1 => match pairs(page.groups[0].first()) {
            Ok(pairs) => html! { p.lead { "Pictures of the first run, " (page.names[0]) "." } (of_one(&pairs)) },
            Err(reason) => html! { p.empty { (reason) } },
        },
        None => of_several(page),
    }
}

fn of_one(pairs: &[Pair]) -> Markup {
    let right =
        |which: usize| pairs.iter().filter(|pair| pair.verdicts.as_ref().is_some_and(|v| v[which] == "right")).count();
    let judged = pairs.iter().any(|pair| pair.verdicts.is_some());
    html! {
        p.lead {
            "Held-out prompts. Left the base, right what was trained, from equal start noise. "
            @if judged {
                "By the strict rule " (right(0)) " of these " (pairs.len()) " are right before, and " (right(1)) " after; they are spread evenly \
                 over all that were measured."
            }
        }
        div.pairs {
            @for pair in pairs {
                figure.pair {
                    div.two {
                        (picture(&pair.before, &format!("base: {}", pair.prompt)))
                        (picture(&pair.after, &format!("tuned: {}", pair.prompt)))
                    }
                    figcaption {
                        (pair.prompt)
                        @if let Some([before, after]) = &pair.verdicts { span.verdicts { (verdict(before)) " → " (verdict(after)) } }
                    }
                }
            }
        }
    }
}

fn verdict(text: &str) -> Markup {
    html! {
        @match text {
            "right" => { span.right { "✓ right" } }
            "wrong" => { span.wrong { "✗ wrong" } }
            other => { (other) }
        }
    }
}

/// The same prompts under every recipe, if the runs were measured with the same ones.
fn of_several(page: &Page<'_>) -> Markup {
    let mut columns: Vec<(&str, Vec<Pair>)> = Vec::new();
    let mut left_out: Vec<&str> = Vec::new();
    for group in &page.groups {
        let pairs = pairs(group.first()).unwrap_or_default();
        let alike = |(a, b): (&Pair, &Pair)| a.prompt == b.prompt && a.before.url == b.before.url;
        let same = |first: &[Pair]| first.len() == pairs.len() && first.iter().zip(&pairs).all(alike);
        if !pairs.is_empty() && columns.first().is_none_or(|(_, first)| same(first)) {
            columns.push((&group.label, pairs));
        } else {
            left_out.push(&group.label);
        }
    }
    let Some((_, first)) = columns.first() else {
        return html! { p.empty { "Finished runs have pictures of before and after; of these none has." } };
    };
    let count = first.len().min(ACROSS);
    html! {
        p.lead {
            "The same held-out prompts and start noise under each recipe, from its first run here. "
            @if !left_out.is_empty() { "Left out, without such pictures or measured in another way: " (left_out.join(", ")) "." }
        }
        div.scroll {
            table.across {
                thead { tr { th {} th scope="col" { "base" } @for (label, _) in &columns { th scope="col" { (label) } } } }
                tbody {
                    @for row in (0..count).map(|k| k * first.len() / count) {
                        tr {
                            th scope="row" { (first[row].prompt) }
                            td { (shown(&first[row].before, &first[row], 0, "base")) }
                            @for (label, pairs) in &columns { td { (shown(&pairs[row].after, &pairs[row], 1, label)) } }
                        }
                    }
                }
            }
        }
    }
}

fn shown(image: &Picture, pair: &Pair, which: usize, label: &str) -> Markup {
    html! {
        (picture(image, &format!("{label}: {}", pair.prompt)))
        @if let Some(verdicts) = &pair.verdicts { span.verdicts { (verdict(&verdicts[which])) } }
    }
}

fn picture(picture: &Picture, text: &str) -> Markup {
    html! {
        img.pixels[picture.pixels] src=(picture.url) width=(picture.width) height=(picture.height) alt=(text);
    }
}

/// Samples of training in rows by their rewards, of the first and the last epoch that there are pictures of.
pub(super) fn by_reward(page: &Page<'_>) -> Markup {
    let Some(run) = page.single() else { return html! {} };
    let (galleries, note) = galleries(run);
    html! {
        @if galleries.is_empty() { p.empty { (note) } }
        @else {
            p.lead { "Pictures drawn for training prompts, from the highest reward to the lowest. " (note) }
            div.galleries { @for gallery in &galleries { (epoch(gallery)) } }
        }
    }
}

fn epoch(gallery: &Gallery) -> Markup {
    let widest = gallery.rows.iter().map(|row| row.samples.len()).max().unwrap_or(1);
    html! {
        div.gallery {
            h3 { "Epoch " (gallery.epoch) span.soft { " · " (gallery.of) " pictures" } }
            @for row in &gallery.rows {
                div.level {
                    p.soft { (row.name) }
                    div.samples style=(format!("--columns:{widest}")) {
                        @for sample in &row.samples {
                            figure {
                                (picture(&sample.picture, &sample.prompt))
                                figcaption { b { (sample.reward.map_or("missing".into(), score)) } br; (sample.prompt) }
                            }
                        }
                    }
                }
            }
        }
    }
}
