//! The files that a pipeline needs, downloaded once to the cache that Python's programs use too (`HF_HUB_CACHE`, else
//! `HF_HOME/hub`, else `~/.cache/huggingface/hub`), and the folder that they make there.

use crate::error::{At, Error, Result};
use elbow_models::pipeline::STEM;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

/// Where models are, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// How often a download is taken up again that breaks off.
const RETRIES: usize = 5;
const INDEX: &str = "model_index.json";
/// Parts with weights, and what their files are called.
const WEIGHTS: [(&str, &str); 6] = [
    ("transformer", STEM),
    ("unet", STEM),
    ("vae", STEM),
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("text_encoder_3", "model"),
];
/// Parts that consist of small files.
const SMALL: [&str; 4] = ["scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"];

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `owner/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit.
    pub revision: &'a str,
    /// Weights that exist in this variant are taken in it.
    pub variant: Option<&'a str>,
}

/// The folder of a model, named by its commit; what is not in the cache is downloaded. `known` looks at the folder as soon as
/// `model_index.json` is there: its error ends the download.
pub fn fetch(wanted: Wanted<'_>, known: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()));
    let endpoint = set("HF_ENDPOINT").map_or_else(|| ENDPOINT.into(), |url| url.trim_end_matches('/').to_owned());
    let offline = set("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false", "no"].contains(&&*value.to_lowercase()));
    Hub::new(endpoint, cache, set("HF_TOKEN"), offline)?.fetch(wanted, known)
}

/// A server and the cache of what came from it.
struct Hub {
    api: Api,
    cache: Cache,
    endpoint: String,
    offline: bool,
}

impl Hub {
    fn new(endpoint: String, cache: Cache, token: Option<String>, offline: bool) -> Result<Self> {
        let token = token.or_else(|| cache.token());
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.clone()).with_token(token);
        let api =
            builder.with_retries(RETRIES).build().map_err(Error::other).at(|| "cannot prepare a download".into())?;
        Ok(Self { api, cache, endpoint, offline })
    }

    fn fetch(&self, wanted: Wanted<'_>, known: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        let Wanted { name, revision, variant } = wanted;
        let held = self.held(wanted).filter(|folder| whole(folder, variant, false));
        if let Some(folder) = &held
            && (self.offline || is_commit(revision) && whole(folder, variant, true))
        {
            return Ok(folder.clone());
        }
        if self.offline {
            let message = format!("{name} at {revision} is not whole in {}", self.cache.path().display());
            return Err(Error::new(message, "download it first: start once without HF_HUB_OFFLINE"));
        }
        say(&format!("asking {} for {name} at {revision}", self.endpoint));
        let info = match (self.api.repo(repo(name, revision)).info(), held) {
            (Err(error), Some(folder)) if status(&error).is_none() => {
                say(&format!("cannot reach {}: using what was downloaded before, {}", self.endpoint, folder.display()));
                return Ok(folder);
            }
            (info, _) => info.map_err(|error| self.failed(wanted, error))?,
        };
        if !is_commit(&info.sha) {
            let message = format!("{} answers {:?} for the commit of {name}", self.endpoint, info.sha);
            return Err(Error::new(message, "check HF_ENDPOINT"));
        }
        let names = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let folder = self.download(Wanted { revision: &info.sha, ..wanted }, &names, known)?;
        let branch = self.cache.repo(repo(name, revision));
        branch.create_ref(&info.sha).at(|| format!("cannot write to {}", self.cache.path().display()))?;
        Ok(folder)
    }

    /// The folder in the cache, if it knows the revision.
    fn held(&self, Wanted { name, revision, .. }: Wanted<'_>) -> Option<PathBuf> {
        let cached = self.cache.repo(repo(name, revision));
        if is_commit(revision) {
            return Some(cached.pointer_path(revision));
        }
        Some(cached.get(INDEX)?.parent()?.to_owned())
    }

    /// Downloads what is needed of the files `names` of a commit, the small ones first, and returns their folder.
    fn download(
        &self,
        wanted: Wanted<'_>,
        names: &BTreeSet<String>,
        known: impl Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let source = self.api.repo(repo(wanted.name, wanted.revision));
        let folder = self.cache.repo(repo(wanted.name, wanted.revision)).pointer_path(wanted.revision);
        let get = |file: &String| {
            let there = folder.join(file).is_file();
            if there { Ok(()) } else { source.get(file).map(drop).map_err(|error| self.failed(wanted, error)) }
        };
        let lacks = |what: &str| {
            let hint = "choose a model as diffusers saves it, with its weights as safetensors";
            Error::new(format!("{} has no {what}", wanted.name), hint)
        };
        let index = INDEX.to_owned();
        names.get(&index).ok_or_else(|| lacks(INDEX))?;
        get(&index)?;
        known(&folder)?;
        let (small, mut weights) = files(names, wanted.variant);
        say(&format!("downloading what is missing of {} to {}", wanted.name, folder.display()));
        small.iter().try_for_each(get)?;
        if let Some(part) = lacking(&folder, &small, &weights)? {
            return Err(lacks(&format!("files of {part}/ that can be read")));
        }
        for listing in weights.iter().filter(|file| is_listing(file)).cloned().collect::<Vec<_>>() {
            get(&listing)?;
            let shards = shards(&folder, &listing)?;
            if let Some(absent) = shards.iter().find(|shard| !names.contains(*shard)) {
                return Err(lacks(absent));
            }
            weights.extend(shards);
        }
        weights.iter().try_for_each(get)?;
        Ok(folder)
    }

    /// What went wrong, and what to do.
    fn failed(&self, Wanted { name, revision, .. }: Wanted<'_>, error: ApiError) -> Error {
        let endpoint = &self.endpoint;
        let (message, hint) = match status(&error) {
            Some(code @ (401 | 403)) => (
                format!("{name} cannot be downloaded: it is gated or private, or there is no such model (HTTP {code})"),
                format!(
                    "accept its licence at {endpoint}/{name}, and set HF_TOKEN to a token of your account; check model.hub"
                ),
            ),
            Some(404) => (
                format!(
                    "there is no model {name} with revision {revision} at {endpoint}, or a file of it is gone (HTTP 404)"
                ),
                "check model.hub and model.revision".to_owned(),
            ),
            Some(code) => (
                format!("{endpoint} answers {code} for {name}"),
                "try again later; what has come so far is kept".to_owned(),
            ),
            None if matches!(error, ApiError::IoError(_) | ApiError::LockAcquisition(_)) => (
                format!("cannot keep {name} in {}: {error}", self.cache.path().display()),
                "make room or choose another place with HF_HOME; wait if another program is downloading the same model"
                    .to_owned(),
            ),
            None => (
                format!("cannot get {name} from {endpoint}: {error}"),
                "check the network and HF_ENDPOINT, or download the model elsewhere and give its folder as model.path"
                    .to_owned(),
            ),
        };
        Error::new(message, hint)
    }
}

#[expect(clippy::print_stderr, reason = "a download takes long; files have bars")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn repo(name: &str, revision: &str) -> Repo {
    Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned())
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The status with which a server refused, if it did.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// Names of a part's weights as [`elbow_models::folder::Checkpoint::open`] looks for them; the first two are what was asked for.
fn candidates(part: &str, stem: &str, variant: Option<&str>) -> [String; 4] {
    let (plain, other) = (format!("{part}/{stem}"), variant.unwrap_or("fp16"));
    let mut names = [
        format!("{plain}.safetensors"),
        format!("{plain}.safetensors.index.json"),
        format!("{plain}.{other}.safetensors"),
        format!("{plain}.safetensors.index.{other}.json"),
    ];
    names.rotate_left(if variant.is_some() { 2 } else { 0 });
    names
}

/// Of all files those that are read: small ones, and weights or the listing of their shards.
fn files(names: &BTreeSet<String>, variant: Option<&str>) -> (Vec<String>, BTreeSet<String>) {
    let weights = WEIGHTS
        .iter()
        .filter_map(|(part, stem)| candidates(part, stem, variant).into_iter().find(|name| names.contains(name)));
    let small = |name: &&String| {
        let Some((part, file)) = name.split_once('/') else { return false };
        let text = [".json", ".txt", ".model"].iter().any(|end| file.ends_with(end)) && !file.contains('/');
        SMALL.contains(&part) && text || WEIGHTS.iter().any(|(weights, _)| *weights == part) && file == "config.json"
    };
    (names.iter().filter(small).cloned().collect(), weights.collect())
}

/// A part that `model_index.json` lists and that is not among the files.
fn lacking(folder: &Path, small: &[String], weights: &BTreeSet<String>) -> Result<Option<&'static str>> {
    let index: Map<String, Value> = read_json(&folder.join(INDEX))?;
    let listed = |part: &str| index.get(part).is_some_and(|class| class[1].is_string());
    let of = |file: &String, part: &str| file.split_once('/').is_some_and(|(place, _)| place == part);
    let mut heavy = WEIGHTS.iter().map(|(part, _)| *part).filter(|part| !weights.iter().any(|file| of(file, part)));
    let mut light = SMALL.into_iter().filter(|part| !small.iter().any(|file| of(file, part)));
    Ok(heavy.find(|part| listed(part)).or_else(|| light.find(|part| listed(part))))
}

fn is_listing(file: &str) -> bool {
    file.contains(".safetensors.index.")
}

/// The files that a listing of shards names, which lie beside it.
fn shards(folder: &Path, listing: &str) -> Result<BTreeSet<String>> {
    let json: Value = read_json(&folder.join(listing))?;
    let part = listing.split_once('/').map_or("", |(part, _)| part);
    let files = json["weight_map"].as_object().into_iter().flat_map(Map::values).filter_map(Value::as_str);
    Ok(files.filter(|file| !file.contains(['/', '\\'])).map(|file| format!("{part}/{file}")).collect())
}

/// Whether all that is read is in a folder; `certain`: in the variant that was asked for.
fn whole(folder: &Path, variant: Option<&str>, certain: bool) -> bool {
    let file = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.to_owned());
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().filter_map(file).collect::<Vec<_>>();
    let parts = WEIGHTS.iter().map(|(part, _)| *part).chain(SMALL);
    let inside = |part| list(&folder.join(part)).into_iter().map(move |file| format!("{part}/{file}"));
    let names: BTreeSet<String> = parts.flat_map(inside).collect();
    let (small, weights) = files(&names, variant);
    let shards_there = |listing: &String| shards(folder, listing).is_ok_and(|files| files.is_subset(&names));
    let asked = |name: &String| WEIGHTS.iter().any(|(part, stem)| candidates(part, stem, variant)[..2].contains(name));
    lacking(folder, &small, &weights).is_ok_and(|part| part.is_none())
        && weights.iter().all(|file| (!is_listing(file) || shards_there(file)) && (!certain || asked(file)))
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read(file).at(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).at(|| format!("{} is damaged", file.display()))
}

#[cfg(test)]
mod tests;
