//! `elbow reward`: rewards by themselves, without a model.

use super::progress::Bars;
use crate::{failure, output, signals};
use anyhow::{Context, Result};
use elbow::{Prompt, Request, Reward, RgbImage, prompts, reward};
use elbow_rewards::{Log, serve, worker};
use elbow_run::{Recipe, components, data, recipe, reward::Tools, samples, self_test};
use elbow_runlog::{RunFolder, write_atomic};
use serde_json::{Map, Value};
use std::{
    fmt::Write,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Arguments of `elbow reward`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow reward new my_reward.py                                  a Python file to start from
  elbow reward check --set reward.kind=python --set reward.file=my_reward.py
  elbow reward score images/ --prompts prompts.txt --set reward.kind=python --set reward.file=my_reward.py
  elbow reward serve --recipe my-recipe.toml                     for other trainers")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Write a commented Python file with a reward of your own.
    New(New),
    /// Ask the rewards of a recipe about test pictures.
    Check(Check),
    /// Score pictures of any origin, or those of a run by another reward.
    Score(Score),
    /// Offer the rewards of a recipe to trainers of any kind, over HTTP.
    Serve(Serve),
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow reward new my_reward.py
  elbow train --set reward.kind=python --set reward.file=my_reward.py --set reward.python=.venv/bin/python")]
struct New {
    /// The file to write.
    file: PathBuf,
}

/// The recipe whose reward is asked.
#[derive(clap::Args)]
struct Source {
    /// A recipe file, or the name of one that `elbow methods` lists; the default is nano-geneval.
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Change one field, e.g. reward.kind=jpeg; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow reward check --set reward.kind=python --set reward.file=my_reward.py
  elbow reward check --recipe my-recipe.toml

The same is asked before every run, which does not start unless all is well. To make sure that a reward prefers what you prefer,
name pictures of which you know the better one in the recipe:

  [[self_test]]
  better = \"sharp.png\"
  worse = \"blurred.png\"
  prompt = \"a photo of a cat\"")]
struct Check {
    #[command(flatten)]
    source: Source,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow reward score images/ --prompts prompts.txt --set reward.kind=python --set reward.file=my_reward.py
  elbow reward score images/ --prompts metadata.jsonl --recipe my-recipe.toml --out scores.jsonl
  elbow reward score --run runs/mine --set reward.kind=jpeg      a run that kept its pictures (keep.pictures = true)")]
struct Score {
    /// A folder of PNG pictures, which are taken in the order of their names.
    #[arg(required_unless_present = "run", conflicts_with = "run")]
    images: Option<PathBuf>,
    /// A .txt or .jsonl file with one prompt a picture, or one for all of them.
    #[arg(long, value_name = "FILE", required_unless_present = "run", conflicts_with = "run")]
    prompts: Option<PathBuf>,
    /// A run folder whose samples are scored again.
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// Where the lines go; without it they are printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  elbow reward serve --set reward.kind=python --set reward.file=my_reward.py
  ELBOW_REWARD_TOKEN=secret elbow reward serve --recipe my-recipe.toml --listen 0.0.0.0:18090 --token-env ELBOW_REWARD_TOKEN

The protocol is that of UniRL's reward service: POST /score, GET /health, /rewards, /metrics. Another run asks it by

  [reward]
  kind = \"served\"
  url = \"http://127.0.0.1:18090\"
  protocol = { kind = \"score\", reward = \"my_reward\" }")]
struct Serve {
    #[command(flatten)]
    source: Source,
    /// Address and port; port 0 takes a free one. Other machines reach it only if you name an address of this one, such as 0.0.0.0.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:18090")]
    listen: SocketAddr,
    /// The environment variable with a token that every request must bring.
    #[arg(long, value_name = "VARIABLE")]
    token_env: Option<String>,
    /// Seconds that a reward may take for a request.
    #[arg(long, default_value_t = 300.0)]
    timeout: f64,
}

/// Pictures in one request.
const REQUEST: usize = 64;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::New(args) => new(&args.file),
        What::Check(args) => check(&args.source),
        What::Score(args) => score(args),
        What::Serve(args) => serve(args),
    }
}

fn new(file: &Path) -> Result<()> {
    if file.exists() {
        let message = format!("{} is there already", file.display());
        return Err(failure::error(message, "choose another name, or remove the file yourself"));
    }
    write_atomic(file, worker::template().as_bytes())?;
    let file = file.display();
    output::line(&format!(
        "wrote {file}; try it with: elbow reward check --set reward.kind=python --set reward.file={file}"
    ));
    Ok(())
}

impl Source {
    fn recipe(&self) -> Result<Recipe> {
        Ok(recipe::load(self.recipe.as_deref(), &self.set)?.1)
    }
}

fn check(source: &Source) -> Result<()> {
    let recipe = source.recipe()?;
    recipe.setting.reward.check_resolution(recipe.setting.model.resolution())?;
    let (prompts, _) = data::held_out(&recipe)?;
    let start = Instant::now();
    let log = Log::default();
    for said in components::try_each(&recipe, &prompts, &log) {
        output::line(&said?);
    }
    if let (false, Some(prompt)) = (recipe.setting.self_test.is_empty(), prompts.first()) {
        let reward = recipe.setting.reward.build(&Tools { log, ..Tools::default() })?;
        output::line(&self_test::known(&recipe.setting.self_test, &*reward, prompt)?.join("\n"));
    }
    output::line(&format!("all is well, after {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Largest body of a request: some 200 pictures of 512 × 512.
const BODY_LIMIT: usize = 256 << 20;

fn serve(args: &Serve) -> Result<()> {
    let recipe = args.source.recipe()?;
    let (prompts, _) = data::held_out(&recipe)?;
    let tools = components::tools(&recipe, &prompts);
    let leaves = recipe.setting.reward.leaves();
    let rewards: Vec<(String, Arc<dyn Reward>)> = leaves
        .into_iter()
        .map(|(name, reward)| Ok((name.clone(), Arc::from(reward.named(&name, &tools)?))))
        .collect::<Result<_>>()?;
    if let Some((name, _)) = rewards.iter().find(|(_, reward)| reward.needs().latents) {
        return Err(failure::error(
            format!("reward `{name}` scores latents, and a server is sent pictures"),
            "set a reward of pictures",
        ));
    }
    let token = match &args.token_env {
        None => None,
        Some(variable) => Some(std::env::var(variable).ok().filter(|token| !token.is_empty()).ok_or_else(|| {
            failure::error(
                format!("the environment variable {variable} holds no token"),
                "set it, or leave --token-env out",
            )
        })?),
    };
    if token.is_none() && !args.listen.ip().is_loopback() {
        output::note(
            "warning: whoever reaches this machine can ask these rewards; --token-env names a token to ask for",
        );
    }
    let timeout = Duration::try_from_secs_f64(args.timeout)
        .map_err(|_| failure::error(format!("--timeout {}: not a time", args.timeout), "give seconds, above 0"))?;
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let stop = signals::flag()?;
    let names: Vec<&str> = rewards.iter().map(|(name, _)| name.as_str()).collect();
    output::line(&format!("serving {} at http://{}; Ctrl-C ends it", names.join(", "), listener.local_addr()?));
    Ok(serve::serve(listener, serve::Offer { rewards, token, timeout, body_limit: BODY_LIMIT }, stop)?)
}

/// Pictures with their prompts, and what each is called.
struct Pictures {
    names: Vec<String>,
    images: Vec<RgbImage>,
    prompts: Vec<Arc<Prompt>>,
}

fn score(args: &Score) -> Result<()> {
    let recipe = args.source.recipe()?;
    let pictures = match (&args.run, &args.images, &args.prompts) {
        (Some(run), ..) => of_run(run)?,
        (None, Some(images), Some(prompts)) => of_folder(images, prompts)?,
        _ => unreachable!("invariant: clap wants one or the other"),
    };
    let listed: Vec<Prompt> = pictures.prompts.iter().map(|prompt| Prompt::clone(prompt)).collect();
    let tools = components::tools(&recipe, &listed);
    let reward = components::reward(&recipe, &listed, &tools)?;
    if reward.needs().latents {
        return Err(failure::error(
            format!("reward `{}` scores latents, and pictures have none", reward.name()),
            "set a reward of pictures, for example --set reward.kind=jpeg",
        ));
    }
    reward.check(&listed)?;
    let (lines, summary) = scored(&*reward, &pictures);
    for line in tools.log.take() {
        output::note(line.trim_end());
    }
    match &args.out {
        Some(path) => write_atomic(path, lines.as_bytes())?,
        None => output::print(&lines),
    }
    output::note(&summary);
    Ok(())
}

/// One line a picture, and a line about all.
fn scored(reward: &dyn Reward, pictures: &Pictures) -> (String, String) {
    let bars = Bars::new();
    let total = pictures.images.len();
    let groups = groups(&pictures.prompts);
    let step = if reward.needs().whole_groups { total.max(1) } else { REQUEST };
    let (mut lines, mut values, mut missing) = (String::new(), Vec::new(), 0);
    for first in (0..total).step_by(step) {
        let rows = first..total.min(first + step);
        let request = Request {
            images: &pictures.images[rows.clone()],
            prompts: &pictures.prompts[rows.clone()],
            latents: None,
            groups: &groups[rows.clone()],
        };
        for (row, score) in rows.clone().zip(reward::ask(reward, &request)) {
            let mut line = Map::new();
            line.insert("picture".into(), pictures.names[row].clone().into());
            line.insert("prompt".into(), pictures.prompts[row].text.clone().into());
            samples::add_score(&mut line, &score);
            let _ = writeln!(lines, "{}", Value::Object(line));
            match score {
                Ok(score) => values.push(score.value),
                Err(_) => missing += 1,
            }
        }
        bars.progress(elbow_run::Event::Progress { phase: "scoring", done: rows.end, total });
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let name = reward.name();
    let summary = match values.len() {
        0 => format!("{name}: none of {total} pictures has a score"),
        scored => format!("{name}: mean {mean:.4} of {scored} pictures; {missing} have no score"),
    };
    (lines, summary)
}

/// Pictures of one prompt are one group.
fn groups(prompts: &[Arc<Prompt>]) -> Vec<usize> {
    let first = |prompt: &Arc<Prompt>| prompts.iter().position(|other| other == prompt).unwrap_or(0);
    prompts.iter().map(first).collect()
}

fn of_folder(folder: &Path, prompt_file: &Path) -> Result<Pictures> {
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("png")));
    paths.sort();
    let prompts: Vec<Arc<Prompt>> = prompts::read(prompt_file)?.into_iter().map(Arc::new).collect();
    if paths.is_empty() {
        return Err(failure::error(format!("there is no .png in {}", folder.display()), "save the pictures as PNG"));
    }
    if prompts.len() != 1 && prompts.len() != paths.len() {
        return Err(failure::error(
            format!("{} has {} prompts for {} pictures", prompt_file.display(), prompts.len(), paths.len()),
            "give one prompt a picture, in the order of their names, or one for all",
        ));
    }
    let prompts = paths.iter().enumerate().map(|(i, _)| Arc::clone(&prompts[i % prompts.len()])).collect();
    read(paths, prompts)
}

/// The samples of all epochs of a run that kept its pictures.
fn of_run(run: &Path) -> Result<Pictures> {
    let folder = RunFolder::open(run)?;
    let kept = samples::kept(&folder.samples())?;
    if kept.is_empty() {
        return Err(failure::error(
            format!("{} has no pictures of its samples", run.display()),
            "train with --set keep.pictures=true",
        ));
    }
    let (paths, prompts) = kept.into_iter().map(|(path, prompt)| (path, Arc::new(prompt))).unzip();
    read(paths, prompts)
}

fn read(paths: Vec<PathBuf>, prompts: Vec<Arc<Prompt>>) -> Result<Pictures> {
    let open = |path: &PathBuf| {
        let picture = image::open(path).with_context(|| format!("cannot read picture {}", path.display()))?;
        Ok(picture.to_rgb8())
    };
    let images = paths.iter().map(open).collect::<Result<_>>()?;
    let names = paths.iter().map(|path| path.display().to_string()).collect();
    Ok(Pictures { names, images, prompts })
}
