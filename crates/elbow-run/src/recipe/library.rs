//! The recipes that come with the program, so that it runs them by name from any folder.

use elbow::text;
use std::{io, path::Path};

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../recipes/", $name, ".toml")))),*]
    };
}

/// Names and texts, the default one first.
pub const ALL: &[(&str, &str)] = recipes![
    "nano-geneval",
    "nano-geneval-long",
    "nano-flow-grpo",
    "nano-diffusion-nft",
    "nano-awm",
    "nano-ram",
    "nano-v-grpo",
    "nano-grpo-guard",
    "nano-flow-dppo",
    "nano-flow-cps",
    "nano-dance-grpo",
    "nano-mix-grpo",
    "nano-tempflow-grpo",
    "nano-sol-rl",
    "nano-op-grpo",
    "nano-ddpo-sf",
    "nano-ddpo-is",
    "nano-ddpo-compressibility",
    "nano-ddpo-incompressibility",
    "nano-rwr-compressibility",
    "nano-rwr-incompressibility",
    "nano-dpok",
    "nano-rwr",
    "nano-rwr-sparse",
    "nano-online-dpo",
    "nano-dgpo",
    "nano-crd",
    "nano-diffusion-art",
    "nano-fdfo",
    "nano-neighbor-grpo",
    "nano-distill",
    "nano-dipod",
    "nano-rloo",
    "nano-dr-grpo",
    "nano-dapo",
    "nano-gdpo",
    "nano-gspo",
    "nano-gspo-trajectory",
    "nano-self-consistency",
    "nano-gmpo",
    "nano-cispo",
    "nano-sapo",
    "nano-kimi-pmd",
    "nano-rpg",
    "nano-trajectory-balance",
    "ablation-1-epg-trajectory-sde",
    "ablation-2-epg-trajectory-sde-cfg",
    "ablation-3-epg-elbo-sde",
    "ablation-4-epg-elbo-ode",
    "ablation-5-pepg-elbo-sde",
    "ablation-6-pepg-elbo-ode",
    "ablation-7-par-elbo-sde",
    "ablation-8-par-elbo-ode",
    "ablation-9-grpo-elbo-ode",
    "sd3.5-geneval",
    "sd3.5-flow-grpo",
    "sd3.5-diffusion-nft",
    "sd3.5-awm",
    "flux-dance-grpo",
    "flux-mix-grpo",
    "sd1.5-ddpo-compressibility",
];

/// The text of a recipe: that of the file, as editors of all systems write it, or where there is none, of the recipe of that name (`nano-geneval` or
/// `nano-geneval.toml`).
pub fn read(path: &Path) -> io::Result<String> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => named(path).map(str::to_owned).ok_or(error),
        Err(error) => Err(error),
        Ok(bytes) => text::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn named(path: &Path) -> Option<&'static str> {
    let name = path.to_str()?;
    let name = name.strip_suffix(".toml").unwrap_or(name);
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The first sentence of a recipe's header.
pub fn summary(text: &str) -> String {
    let header =
        text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).take_while(|line| !line.is_empty());
    let header = header.collect::<Vec<_>>().join(" ");
    // A period inside a reference or a number is not followed by a space and a capital.
    let end = header.match_indices(". ").find(|(at, _)| header[at + 2..].starts_with(char::is_uppercase));
    end.map_or(header.as_str(), |(at, _)| &header[..at]).trim_end_matches(['.', ':']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_repository_comes_with_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let entries = std::fs::read_dir(folder).expect("recipes").map(|entry| entry.expect("an entry").path());
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        let mut files: Vec<String> = entries.map(|path| name(&path)).collect();
        let mut known: Vec<String> = ALL.iter().map(|(name, _)| format!("{name}.toml")).collect();
        files.sort();
        known.sort();
        assert_eq!(known, files);
    }

    /// No recipe is scored at a step that dominates the gradient.
    #[test]
    fn recipes_score_no_step_that_owns_the_gradient() {
        let mut told = Vec::new();
        for (name, _) in ALL {
            let (_, recipe) = crate::recipe::load(Some(Path::new(name)), &[]).expect("a recipe");
            // The others' folders, which are not there, are of rectified flow.
            let schedule = if name.starts_with("sd1.5") {
                elbow::schedule::Schedule::ScaledLinear { beta_start: 0.00085, beta_end: 0.012 }
            } else {
                recipe.setting.model.schedule()
            };
            let method = recipe.method.build(schedule).expect("it runs");
            if !method.warnings(schedule).is_empty() {
                told.push(*name);
            }
        }
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn a_summary_is_one_sentence() {
        for (name, text) in ALL {
            let summary = summary(text);
            assert!((20..200).contains(&summary.chars().count()), "{name}: {summary:?}");
        }
    }
}
