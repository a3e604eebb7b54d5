//! Text encoders and prompt embeddings against `transformers` and `diffusers`, and token ids on 1,000 prompts
//! (`fixtures/README.md` says how the references were made).

use crate::model_folder::{assemble, fixtures};
use burn::tensor::{Device, Tensor};
use elbow::{Prompt, policy::TextEncoder};
use elbow_models::{
    folder::{Checkpoint, Folder, FrozenWeights, Shapes},
    text::{
        Cached, TextParts, TextTokenizer,
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
    },
};
use flate2::read::GzDecoder;
use std::{collections::BTreeMap, fs, io::Read, path::Path};

/// Relative to the largest value of the reference.
const TOLERANCE: f64 = 2e-6;
const LENGTH: usize = 24;

fn prompts() -> Vec<Prompt> {
    let long = format!("Ünï¢ode ☃, 猫, and a prompt that goes on and on {}", "and on ".repeat(60));
    ["a photo of a red cat left of 3 dogs!", "", long.as_str()].map(Prompt::from).to_vec()
}

fn reference(name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = Checkpoint::open_file(&fixtures().join("text/reference.safetensors")).expect("a fixture");
    let shape = file.shapes().find(|(n, _)| *n == name).expect("a reference").1.to_vec();
    (shape, file.values(name))
}

fn close<const D: usize>(what: &str, got: Tensor<D>) {
    let (shape, expected) = reference(what);
    assert_eq!(got.dims().to_vec(), shape, "{what}");
    let got: Vec<f32> = got.into_data().try_to_vec().expect("f32");
    let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
    let off = got.iter().zip(&expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
    assert!(off <= TOLERANCE * size && got.iter().all(|v| v.is_finite()), "{what}: off by {off:e} of {size:e}");
}

/// From the text of a prompt to embeddings, through all files of a model folder.
#[test]
fn embeddings_are_those_of_the_pipelines() {
    for pipeline in ["sd3", "flux", "sd1"] {
        let folder = assemble(pipeline);
        let folder = Folder::open(folder.path(), None).expect("a model folder");
        let parts = TextParts::open(&folder, LENGTH).expect("text encoders");
        let got = parts
            .load(FrozenWeights::Stored, &Device::flex())
            .expect("weights")
            .encode(&prompts())
            .expect("embeddings");
        close(&format!("{pipeline}.tokens"), got.tokens);
        close(&format!("{pipeline}.pooled"), got.pooled.expect("a pooled embedding"));
    }
}

fn ids(name: &str) -> Vec<Vec<u32>> {
    let (shape, values) = reference(name);
    values.chunks(shape[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

/// The sequences hold higher ids than the end token's, and two end tokens.
#[test]
fn a_text_ends_where_transformers_says() {
    for (component, variant, ids_of, expected) in [
        ("clip-g", Some("fp16"), "ends.ids", "ends.by-id"),
        ("clip-l-projected", None, "ends.old-ids", "ends.by-old-rule"),
    ] {
        let folder = fixtures().join("text").join(component);
        let config = ClipConfig::read(&folder.join("config.json")).expect("a config");
        let weights = Checkpoint::open(&folder, "model", variant).expect("weights");
        let clip = Clip::load(config, &weights, FrozenWeights::Stored, &Device::flex()).expect("a network");
        close(expected, clip.forward(&ids(ids_of)).pooled);
    }
}

#[test]
fn distances_beyond_the_longest_share_a_bias() {
    let folder = fixtures().join("text/t5");
    let config = T5Config::read(&folder.join("config.json")).expect("a config");
    assert!(config.relative_attention_max_distance < ids("long.ids")[0].len());
    let weights = Checkpoint::open(&folder, "model", None).expect("weights");
    let t5 = T5::load(config, &weights, FrozenWeights::Stored, &Device::flex()).expect("a network");
    close("long.output", t5.forward(&ids("long.ids")));
}

#[test]
fn the_cache_gives_the_same_and_survives_damage() {
    let (model, cache) = (assemble("sd3"), tempfile::tempdir().expect("a folder"));
    let device = Device::flex();
    let open = || {
        let folder = Folder::open(model.path(), None).expect("a model folder");
        TextParts::open(&folder, LENGTH).expect("text encoders")
    };
    let values = |cond: elbow::policy::Conditioning| {
        let pooled = cond.pooled.expect("a pooled embedding");
        [cond.tokens.into_data().try_to_vec::<f32>(), pooled.into_data().try_to_vec()].map(|v| v.expect("f32"))
    };
    let fresh =
        values(open().load(FrozenWeights::Stored, &device).expect("weights").encode(&prompts()).expect("embeddings"));
    let cached = Cached::new(open(), &cache.path().join("text"), FrozenWeights::Stored, &device).expect("a cache");
    assert_eq!(values(cached.encode(&prompts()).expect("encoded")), fresh);

    let names = || fs::read_dir(cache.path().join("text")).expect("a cache").map(|e| e.expect("an entry").path());
    assert_eq!(names().count(), 3);
    let first = names().next().expect("an embedding");
    let bytes = fs::read(&first).expect("read");
    fs::write(&first, &bytes[..bytes.len() / 2]).expect("cut");
    assert_eq!(values(cached.encode(&prompts()).expect("encoded again")), fresh);
    assert_eq!(fs::read(&first).expect("read"), bytes, "the damaged file is replaced");

    // Without weights on disk, embeddings that are there need no encoder; another length is another embedding.
    let folder = Folder::open(model.path(), None).expect("a model folder");
    let (parts, place) = (TextParts::open(&folder, LENGTH + 8).expect("parts"), cache.path().join("text"));
    let other = Cached::new(parts, &place, FrozenWeights::Stored, &device);
    other.expect("a cache").encode(&prompts()[..1]).expect("encoded");
    assert_eq!(names().count(), 4);
}

/// The text encoders of SD3.5 at full size, from the published `config.json` values: so many tensors and parameters.
#[test]
fn full_size_encoders_have_the_published_parameters() {
    let count = |shapes: Shapes| (shapes.len(), shapes.iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>());
    let clip_l =
        ClipConfig { hidden_size: 768, intermediate_size: 3072, num_attention_heads: 12, ..ClipConfig::default() };
    assert_eq!(count(clip_l.shapes("text_model.")), (196, 123_060_480));
    let clip_g = ClipConfig {
        hidden_size: 1280,
        intermediate_size: 5120,
        num_attention_heads: 20,
        num_hidden_layers: 32,
        projection_dim: 1280,
        architectures: vec!["CLIPTextModelWithProjection".into()],
        ..ClipConfig::default()
    };
    assert_eq!(count(clip_g.shapes("text_model.")), (517, 694_659_840));
    let t5 = r#"{"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu"}"#;
    let t5: T5Config = serde_json::from_str(t5).expect("a config");
    assert_eq!(count(t5.shapes()), (219, 4_762_310_656));
}

#[derive(serde::Deserialize)]
struct Row {
    text: String,
    clip: Vec<u32>,
    clip_bang: Option<Vec<u32>>,
    t5: Vec<u32>,
}

fn unpacked(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(file).expect("a fixture")).read_to_end(&mut bytes).expect("gzip");
    bytes
}

fn padded(ids: &[u32], length: usize, pad: u32) -> Vec<u32> {
    let mut row = ids.to_vec();
    row.resize(length, pad);
    row
}

/// CLIP's real merges with both of SD3's padding tokens; T5 from a SentencePiece file with T5's own normalization.
#[test]
fn ids_of_a_thousand_prompts_are_those_of_transformers() {
    let source = fixtures().join("tokenizers");
    let rows: Vec<Row> = serde_json::from_slice(&unpacked(&source.join("prompts.json.gz"))).expect("rows");
    assert_eq!(rows.len(), 1000);
    let folder = tempfile::tempdir().expect("a folder");
    let t5_folder = folder.path().join("t5");
    fs::create_dir(&t5_folder).expect("made");
    fs::write(t5_folder.join("spiece.model"), unpacked(&source.join("t5/spiece.model.gz"))).expect("written");
    let bang_folder = folder.path().join("bang");
    fs::create_dir(&bang_folder).expect("made");
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        let bytes = fs::read_to_string(source.join("clip").join(name)).expect("a fixture");
        let pad = |text: &str| text.replace(r#""pad_token": "<|endoftext|>""#, r#""pad_token": "!""#);
        fs::write(bang_folder.join(name), pad(&bytes)).expect("written");
    }
    let clip = TextTokenizer::clip(&source.join("clip"), 77).expect("a tokenizer");
    let bang = TextTokenizer::clip(&bang_folder, 77).expect("a tokenizer");
    let t5 = TextTokenizer::t5(&t5_folder, 256).expect("a tokenizer");
    let longer = TextTokenizer::t5(&t5_folder, 512).expect("a tokenizer");
    let mut wrong = BTreeMap::<&str, Vec<&str>>::new();
    for row in &rows {
        let one = |tokenizer: &TextTokenizer| tokenizer.ids([row.text.as_str()]).expect("ids").remove(0);
        let mut check = |which, same: bool| {
            if !same {
                wrong.entry(which).or_default().push(&row.text);
            }
        };
        check("clip", one(&clip) == padded(&row.clip, 77, 49407));
        check("bang", one(&bang) == padded(row.clip_bang.as_ref().unwrap_or(&row.clip), 77, 0));
        check("t5", one(&t5) == padded(&row.t5, 256, 0));
        if row.t5.len() < 256 {
            check("t5 of 512", one(&longer) == padded(&row.t5, 512, 0));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Both encoders say what they cut: CLIP at its 77 tokens, T5 at the text length.
#[test]
fn prompts_that_are_cut_are_counted_by_encoder() {
    let cut = |pipeline: &str, prompts: &[&str]| {
        let folder = assemble(pipeline);
        let parts =
            TextParts::open(&Folder::open(folder.path(), None).expect("a folder"), LENGTH).expect("text encoders");
        parts.cut(&prompts.iter().map(|text| Prompt::from(*text)).collect::<Vec<_>>())
    };
    let (long, longer) = ("a ".repeat(76), "a ".repeat(101));
    let fits = "a ".repeat(75);
    // 76 words with a start and an end are one too many, and 75 are not.
    assert_eq!(cut("sd1", &["a", &fits, ""]), [""; 0]);
    assert_eq!(
        cut("sd1", &["a", &long, &longer, &long]),
        ["2 of 3 prompts are longer than the 77 tokens of CLIP and are cut; the longest has 103"]
    );
    for pipeline in ["sd3", "flux"] {
        let told = cut(pipeline, &["a", &long]);
        assert_eq!(told[0], "1 of 2 prompts is longer than the 77 tokens of CLIP and is cut; it has 78", "{pipeline}");
        assert!(
            told[1].starts_with("1 of 2 prompts is longer than the 24 tokens of T5 (text_length) and is cut; it has ")
        );
        let told = cut(pipeline, &["a", &"a ".repeat(30)]);
        assert!(told.len() == 1 && told[0].contains("T5"), "{pipeline}: {told:?}");
    }
}
