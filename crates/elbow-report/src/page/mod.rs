//! The page about runs, a file a section.

mod curves;
mod gallery;
mod radar;
mod recipes;
mod summary;
mod tasks;
mod timing;
mod training;

use crate::{
    document::{Section, document},
    group::Group,
    number,
    run::Run,
    series::X,
};

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
pub(crate) fn page(runs: &[Run], names: &[String]) -> String {
    let page = Page { runs, names, groups: Group::all(runs), xs: X::all(runs) };
    let title = match (names, &page.groups[..]) {
        ([name], _) => name.clone(),
        (_, [group]) => format!("{}, {}", group.label, number::plural(runs.len(), "run")),
        (_, groups) => format!("{} recipes compared", groups.len()),
    };
    let section = |id, name, body| Section { id, name, body };
    let sections = vec![
        section("curves", "Curves", curves::section(&page)),
        section("pictures", "Before and after", gallery::before_and_after(&page)),
        section("tasks", "Tasks", tasks::section(&page)),
        section("gallery", "Gallery", gallery::by_reward(&page)),
        section("radar", "Radar", radar::section(&page)),
        section("training", "Training in detail", training::section(&page)),
        section("recipe", if page.groups.len() > 1 { "Recipes" } else { "Recipe" }, recipes::section(&page)),
        section("timing", "Timing", timing::section(&page)),
    ];
    document("Elbow report", &title, summary::header(&page), sections)
}
