//! Laying one table over another: defaults, what a recipe extends, the recipe, `--set`.

use toml::{Table, Value};

/// A field, and those whose place it takes: a model is in a folder or on the Hub.
const ALTERNATIVES: [(&str, [&str; 2]); 2] = [("path", ["hub", "revision"]), ("hub", ["path", "revision"])];

/// Lays `top` over `base`. A section that names another `kind` replaces the one below it, since the fields of the two have nothing
/// to do with each other; one that names the same kind or none keeps the fields it does not mention.
pub fn merge(base: &mut Table, top: Table) {
    if top.get("kind").is_some_and(|kind| base.get("kind") != Some(kind)) {
        base.clear();
    }
    for (field, others) in ALTERNATIVES {
        if top.contains_key(field) {
            base.retain(|key, _| others.iter().all(|other| key != *other));
        }
    }
    for (key, value) in top {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: &str, top: &str) -> Table {
        let mut base: Table = toml::from_str(base).expect("TOML");
        merge(&mut base, toml::from_str(top).expect("TOML"));
        base
    }

    fn table(text: &str) -> Table {
        toml::from_str(text).expect("TOML")
    }

    #[test]
    fn the_same_kind_keeps_fields_and_another_replaces_them() {
        let base = "[objective]\nkind = 'grpo'\nclip = 0.5\nmax_advantage = 1.0\n[kl]\nkind = 'k1'\nweight = 0.25";
        let kept = merged(base, "objective.clip = 2.0\nkl.kind = 'k2'");
        assert_eq!(kept, table("objective = {kind = 'grpo', clip = 2.0, max_advantage = 1.0}\nkl.kind = 'k2'"));
        let replaced = merged(base, "objective = { kind = 'pepg', ratio = false }");
        assert_eq!(replaced, table("objective = {kind = 'pepg', ratio = false}\nkl = {kind = 'k1', weight = 0.25}"));
    }

    #[test]
    fn a_folder_and_a_name_on_the_hub_replace_each_other() {
        let kind = "[model]\nkind = 'diffusers'\n";
        for (base, top, expected) in [
            ("path = 'a'", "model.hub = 'o/n'", "hub = 'o/n'"),
            ("hub = 'o/n'\nrevision = 'r'", "model.hub = 'o/m'", "hub = 'o/m'"),
            ("hub = 'o/n'\nrevision = 'r'", "model.path = 'a'", "path = 'a'"),
            ("hub = 'o/n'", "model.revision = 'r'", "hub = 'o/n'\nrevision = 'r'"),
            ("path = 'a'", "model = { hub = 'o/n', revision = 'r' }", "hub = 'o/n'\nrevision = 'r'"),
            ("", "model = { hub = 'o/n', path = 'a' }", "hub = 'o/n'\npath = 'a'"),
        ] {
            assert_eq!(merged(&format!("{kind}{base}"), top), table(&format!("{kind}{expected}")), "{top}");
        }
    }
}
