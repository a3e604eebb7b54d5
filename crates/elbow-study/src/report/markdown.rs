//! The report for readers.

use super::{Arm, Arrivals, Comparison, ENOUGH, Report, Split, Tuning, Way};
use crate::{
    file::{Budget, Cost, Test},
    statistics::{Estimate, LEVEL, anova::Share, bootstrap::RESAMPLES},
};
use std::fmt::Write;

impl Report {
    /// The report in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("# Study {}\n\n<!-- Made by elbow study -->\n\n", self.study.name);
        if !self.study.about.is_empty() {
            let _ = writeln!(out, "{}\n", self.study.about.trim());
        }
        if !self.study.limits.is_empty() {
            let _ = writeln!(out, "**What it cannot decide.** {}\n", self.study.limits.trim());
        }
        let _ = writeln!(out, "{}\n", setup(self));
        self.tuning(&mut out);
        for stage in self.stages() {
            let arms: Vec<&Arm> = self.arms.iter().filter(|arm| arm.stage == stage).collect();
            let _ = writeln!(out, "## Methods, {}\n", stage.name());
            self.methods(&arms, &mut out);
            self.threshold(&arms, &mut out);
            let pairs: Vec<&Comparison> = self.comparisons.iter().filter(|pair| pair.stage == stage).collect();
            self.pairs("### Differences", &pairs, &mut out);
            for split in self.variances.iter().filter(|split| split.stage == stage) {
                variance(split, &mut out);
            }
        }
        self.pairs("## What tuning changed", &self.gains.iter().collect::<Vec<_>>(), &mut out);
        let _ = writeln!(out, "## How to read this\n\n{}", notes());
        out
    }

    fn tuning(&self, out: &mut String) {
        let Some(tune) = &self.study.tune else { return };
        let _ = writeln!(
            out,
            "## Trials\n\nEvery method has {} trials of {} of a run's budget, on seeds {} and on training prompts that are held out of \
             training in a trial. The recipe's own values are always one of the candidates; the best mean score is chosen.\n",
            tune.budget,
            tune.share,
            listed(&tune.seeds)
        );
        let _ = writeln!(out, "| method | candidates: score | chosen |\n|---|---|---|");
        for Tuning { name, candidates, chosen, .. } in &self.tuning {
            let text = |changes: &[String]| if changes.is_empty() { "as in the recipe".into() } else { code(changes) };
            let score = |score: Option<f64>| match (score, chosen) {
                (Some(score), _) => format!("{score:.3}"),
                (None, Some(_)) => "stopped".into(),
                (None, None) => "not yet".into(),
            };
            let all: Vec<String> = candidates.iter().map(|(c, s)| format!("{}: {}", text(c), score(*s))).collect();
            let chosen = chosen.map_or("not yet".into(), |i| text(&candidates[i].0));
            let _ = writeln!(out, "| {name} | {} | {chosen} |", all.join("; "));
        }
        out.push('\n');
    }

    fn methods(&self, arms: &[&Arm], out: &mut String) {
        let judge = &self.study.hacking.measure;
        let _ = writeln!(
            out,
            "| method | seeds | epochs | images | evaluations | seconds | base | `{0}`, last | `{1}`, last | stopped | hacked |\n{2}|",
            self.study.measure,
            judge,
            "|---".repeat(11)
        );
        let wanted = self.study.seeds.len();
        for arm in arms {
            let spent = arm.spent;
            let _ = writeln!(
                out,
                "| {} | {} of {wanted} | {} | {:.0} | {:.0} | {} | {} | {} | {} | {} | {} |",
                arm.name,
                arm.seeds.len(),
                arm.epochs,
                spent.images,
                spent.forward + spent.backward,
                spent.seconds.map_or_else(|| "–".into(), amount),
                arm.base.map_or_else(|| "–".into(), |base| format!("{base:.3}")),
                arm.last.map_or_else(|| "–".into(), |last| interval(last, 3)),
                arm.judge.map_or_else(|| "–".into(), |last| interval(last, 3)),
                arm.stopped.len(),
                arm.hacked.len()
            );
        }
        out.push('\n');
    }

    fn threshold(&self, arms: &[&Arm], out: &mut String) {
        let Some(threshold) = self.study.threshold else { return };
        if arms.iter().all(|arm| arm.arrivals.is_empty()) {
            return;
        }
        let _ = writeln!(
            out,
            "### Until `{}` is {threshold}\n\n| method | arrived | counted in | median | mean | cut off at |\n|---|---|---|---|---|---|",
            self.study.measure
        );
        for arm in arms {
            for Arrivals { axis, times, arrived, median, restricted_mean, until } in &arm.arrivals {
                let (all, end) = (times.len(), amount(*until));
                let told = |estimate: Estimate| interval(estimate, digits(*until));
                let median = if *arrived == 0 { format!("more than {end}") } else { told(*median) };
                let mean = if *arrived == 0 { "–".into() } else { told(*restricted_mean) };
                let name = &arm.name;
                let _ = writeln!(out, "| {name} | {arrived} of {all} | {} | {median} | {mean} | {end} |", axis.name());
            }
        }
        out.push('\n');
    }

    fn pairs(&self, title: &str, pairs: &[&Comparison], out: &mut String) {
        if pairs.is_empty() {
            return;
        }
        let test = match self.study.test {
            Test::Welch => "Welch's t test",
            Test::Permutation => "the permutation test",
        };
        let _ = writeln!(
            out,
            "{title}\n\nBy {test}, p corrected for all pairs of the table (Holm), here {}. No word is said on fewer than {ENOUGH} seeds.\n\n\
             | first | second | difference | Hedges' g | p | corrected | the first is |\n|---|---|---|---|---|---|---|",
            pairs.len()
        );
        for pair in pairs {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                pair.one,
                pair.other,
                pair.difference.map_or_else(|| "–".into(), |d| interval(d, 3)),
                pair.effect.map_or_else(|| "–".into(), |g| interval(g, 2)),
                p(pair.p),
                p(pair.corrected),
                pair.verdict
            );
        }
        out.push('\n');
        if pairs.iter().all(|pair| pair.ways.is_empty()) {
            return;
        }
        let _ = writeln!(
            out,
            "Until the threshold, by the log-rank test. The ratio is that of mean times, cut off at one time for both: how many times as \
             much the second takes. Where a seed did not arrive by then, it is nearer to 1 than the truth may be.\n\n\
             | first | second | counted in | second / first | cut off at | not arrived | p | corrected | the first arrives |\n{}|",
            "|---".repeat(9)
        );
        for pair in pairs {
            for Way { axis, ratio, until, censored: [a, b], p: raw, corrected, verdict } in &pair.ways {
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} | {a}, {b} | {} | {} | {verdict} |",
                    pair.one,
                    pair.other,
                    axis.name(),
                    interval(*ratio, 2),
                    amount(*until),
                    p(*raw),
                    p(*corrected)
                );
            }
        }
        out.push('\n');
    }
}

/// What was run, in a paragraph.
pub(super) fn setup(report: &Report) -> String {
    let study = &report.study;
    let budget = match study.budget {
        Budget::Samples(n) => format!("at most {n} images a run, so methods are matched by samples"),
        Budget::Evaluations(n) => {
            format!("at most {n} network evaluations a run, so methods are matched by evaluations")
        }
        Budget::Epochs(n) => format!("{n} epochs a run, whatever they cost"),
    };
    let mut text =
        format!("Seeds {}; {budget}. Compared: `{}` on held-out prompts", listed(&study.seeds), study.measure);
    if let Some(threshold) = study.threshold {
        let _ = write!(text, ", and what it takes until it is {threshold}");
    }
    text.push('.');
    let set = crate::file::flat(&study.set);
    if !set.is_empty() {
        let fields: Vec<String> = set.iter().map(|(field, value)| format!("`{field}={value}`")).collect();
        let _ = write!(text, " Fields of all recipes: {}.", fields.join(", "));
    }
    match &study.cost {
        None => text += " Seconds are not reported, since the study does not say what a pass costs.",
        Some(Cost { forward, backward, image, from }) => {
            let _ = write!(
                text,
                " Seconds are counted, not clocked: {forward:.2e} an evaluation, {backward:.2e} one with its gradient, {image:.2e} an \
                 image ({from})."
            );
        }
    }
    text
}

fn variance(split: &Split, out: &mut String) {
    let [first, second] = &split.asked.factors;
    let only: Vec<String> = split.asked.only.iter().map(|(factor, level)| format!("{factor} = {level}")).collect();
    let only = if only.is_empty() { String::new() } else { format!(", where {}", only.join(" and ")) };
    let _ = writeln!(out, "### Variance by {first} and {second}{only}\n");
    let _ = writeln!(
        out,
        "{first}: {}; {second}: {}; {} seeds in each cell.\n",
        split.levels[0].join(", "),
        split.levels[1].join(", "),
        split.seeds
    );
    let (Some(parts), eta) = (split.parts, split.eta) else {
        let _ = writeln!(out, "No shares: {}.\n", split.refused.as_deref().unwrap_or("nothing is known"));
        return;
    };
    let _ = writeln!(out, "| part | η² | ω² | F | degrees of freedom | p |\n|---|---|---|---|---|---|");
    let names = [first.clone(), second.clone(), "both together".into()];
    for (i, (name, share)) in names.iter().zip([parts.first, parts.second, parts.interaction]).enumerate() {
        let Share { freedom, f, p: value, eta: alone, omega, .. } = share;
        let eta = eta.map_or_else(|| format!("{alone:.3}"), |eta| interval(eta[i], 3));
        let _ = writeln!(
            out,
            "| {name} | {eta} | {omega:.3} | {f:.2} | {freedom}, {} | {} |",
            parts.residual_freedom,
            p(Some(value))
        );
    }
    let _ = writeln!(out, "| within cells | {:.3} | | | | |\n", parts.residual / parts.total);
}

/// A number with its interval.
fn interval(estimate: Estimate, digits: usize) -> String {
    if estimate.value.is_nan() {
        return "–".into();
    }
    let number = |value: f64| if value.is_finite() { format!("{value:.digits$}") } else { "∞".into() };
    let Estimate { value, low, high } = estimate;
    let low = if low == f64::NEG_INFINITY { "−∞".into() } else { number(low) };
    format!("{} ({low} to {})", number(value), number(high))
}

/// Digits after the point of what is counted: seconds may be few.
fn digits(most: f64) -> usize {
    if most < 10.0 { 2 } else { 0 }
}

fn amount(value: f64) -> String {
    format!("{value:.*}", digits(value))
}

fn p(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(p) if p < 1e-4 => format!("{p:.0e}"),
        Some(p) => format!("{p:.4}"),
    }
}

fn code(changes: &[String]) -> String {
    changes.iter().map(|change| format!("`{change}`")).collect::<Vec<_>>().join(", ")
}

pub(super) fn listed<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What the numbers mean.
pub(super) fn notes() -> String {
    NOTES.replace("RESAMPLES", &RESAMPLES.to_string())
}

const NOTES: &str = "Intervals are of 95 %. Means and their differences have Student's, curves and ratios percentile bootstrap intervals of RESAMPLES resamples of seeds (with
few seeds these are too narrow), medians Kaplan and Meier's. A threshold counts as reached at the first measurement that shows it. A seed that
does not arrive is censored at its last measurement and never left out; an infinite bound is one that the seeds do not tell. A run that stopped,
since its gradients or its samples were not finite, counts with its last measurement. A run hacked its reward if, after its best measurement of what the reward should serve, the training
reward rose and that fell. Shares of variance are of balanced grids: η² adds up to 1 with what is within cells, ω² takes off what chance explains.
An evaluation is one image through the network once; guidance makes it two.";

const _: () = assert!(LEVEL > 0.949 && LEVEL < 0.951, "the notes say 95 %");
