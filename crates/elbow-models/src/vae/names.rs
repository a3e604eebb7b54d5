//! Names of tensors in files of other ages.

/// The name today of a tensor in a file of any age: attention of the first published autoencoders, Stable Diffusion 1's
/// among them, says `query`, `key`, `value` and `proj_attn` where `to_q`, `to_k`, `to_v` and `to_out.0` are meant.
pub fn current_name(name: &str) -> String {
    let names = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let renamed = names.iter().find_map(|(old, new)| {
        let (path, kind) = name.rsplit_once('.')?;
        let path = path.strip_suffix(old)?.strip_suffix('.')?;
        path.ends_with("mid_block.attentions.0").then(|| format!("{path}.{new}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_of_attention_become_current() {
        let path = "decoder.mid_block.attentions.0";
        for (old, new) in [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")] {
            assert_eq!(current_name(&format!("{path}.{old}.weight")), format!("{path}.{new}.weight"));
        }
        for name in ["decoder.mid_block.attentions.0.to_q.bias", "decoder.conv_in.weight", "key.weight"] {
            assert_eq!(current_name(name), name);
        }
    }
}
