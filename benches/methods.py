#!/usr/bin/env python3
"""Runs recipes with several seeds and writes what came of it to docs/methods/: a page a recipe, and a table of all.

    python3 benches/methods.py nano-geneval nano-diffusion-nft --seeds 3 --set epochs=30

Needs the release build and Python 3.9 alone. Runs are kept in --runs; what is finished there is not run again, and what was
cut off goes on where it stopped, so the same command may be given until it is through. `--jobs 2` runs two at a time, each on
one thread: the numbers are the same, the times are not. Without --seeds nothing is run: pages are made of what is there, with the changes to the recipe that the runs themselves name.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
MADE = "<!-- Made by benches/methods.py -->"


UNTUNED = (
    "This is no comparison of methods: every recipe ran with the settings it has, ten epochs in most rows, and nothing was tuned. A method that does"
    " not learn here has got no fair chance; `studies/methods.toml` gives every one the same number of trials ([how](../studies.md))."
)


def folder(recipe, seed, args):
    return Path(args.runs) / f"{recipe}-seed{seed}"


def run(recipe, seed, args):
    """Begins, or goes on with, a run; what a run says when it fails is kept beside it."""
    place = folder(recipe, seed, args)
    if (place / "result.json").exists():
        return
    begin = ["--resume", str(place)] if (place / "config.toml").exists() else [recipe, "--run", str(place)]
    changes = [] if "--resume" in begin else [f"seed={seed}", *args.set]
    sets = [part for change in changes for part in ("--set", change)]
    threads = {"RAYON_NUM_THREADS": "1"} if args.jobs > 1 else {}
    done = subprocess.run([args.elbow, "train", *begin, *sets], env={**os.environ, **threads}, capture_output=True, text=True)
    print(f"{recipe}, seed {seed}: {'finished' if done.returncode == 0 else done.stderr.strip()}", flush=True)
    if done.returncode != 0 and place.exists():
        (place / "failure.txt").write_text(done.stderr)


def changes(place):
    """What the run's recipe was changed in, as its manifest has it; the seed, and what the run folder keeps, change no number."""
    arguments = json.loads((place / "manifest.json").read_text())["arguments"]
    sets = [change for flag, change in zip(arguments, arguments[1:]) if flag == "--set"]
    return [change for change in sets if not change.startswith(("seed=", "keep."))]


def listed(changes):
    return ", ".join(f"`{change}`" for change in changes) or "none"


def records(place):
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def interval(values):
    """Mean, and half the width of its 95 % interval where there are several."""
    values = [v for v in values if v is not None]
    if not values:
        return "missing"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T95[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def curve(folders, names):
    """By epoch with an evaluation: column -> one value a seed."""
    rows = {}
    for place in folders:
        for record in records(place):
            if "eval_reward_geneval" in record:
                for name in names:
                    rows.setdefault(record["epoch"], {}).setdefault(name, []).append(record.get(name))
    return dict(sorted(rows.items()))


def seconds(place):
    times = [r["time_rollout"] + r["time_update"] for r in records(place) if "time_rollout" in r]
    return statistics.median(times)


def header(recipe):
    lines = []
    for line in (ROOT / "recipes" / f"{recipe}.toml").read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return lines


def verdict(bases, tuned):
    """One sentence, from the differences of each seed."""
    gains = [t - b for t, b in zip(tuned, bases)]
    if all(g > 0.02 for g in gains):
        return f"It learns: {interval(gains)} above the base."
    if all(g < -0.02 for g in gains):
        return f"**It makes the model worse here**, in so many epochs: {interval(gains)} against the base."
    return f"**It does not learn here**, or not with every seed, in so many epochs: {interval(gains)} against the base."


def page(recipe, folders):
    """What the finished runs did, and the row of the recipe in the table of all."""
    results = [json.loads((f / "result.json").read_text()) for f in folders]
    jpeg = "eval_reward_jpeg" in results[0]["tuned"]
    score = "eval_reward_jpeg" if jpeg else "eval_reward_geneval"
    of = lambda which, name: [r[which].get(name) for r in results]
    base, tuned, judge = of("base", score), of("tuned", score), of("tuned", "eval_reward_judge")
    epochs = max(r["epoch"] for r in records(folders[0]))
    made = changes(folders[0])
    lines = [f"Measured: {len(folders)} seed(s), {epochs} epochs; changes to the recipe: {listed(made)}. {verdict(base, tuned)}", ""]
    what = "JPEG reward" if jpeg else "strict score"
    lines += [f"| seed | {what}, base | tuned | judge, tuned |", "|---|---|---|---|"]
    lines += [f"| {i} | {b:.3f} | {t:.3f} | {j:.3f} |" for i, (b, t, j) in enumerate(zip(base, tuned, judge))]
    lines += ["", "Strict score by task, tuned, mean of the seeds:", "", "| " + " | ".join(TASKS) + " |", "|" + "---|" * len(TASKS)]
    by_task = [statistics.fmean(r["tuned"][f"eval_reward_geneval_{task}"] for r in results) for task in TASKS]
    lines += ["| " + " | ".join(f"{v:.2f}" for v in by_task) + " |", ""]
    columns = {score: f"held-out {what}", "eval_reward_geneval": "held-out strict score", "eval_reward_judge": "judge"}
    columns["reward_jpeg" if jpeg else "reward_geneval"] = "training reward"
    rows = curve(folders, columns)
    lines += ["Held-out curve, with 95 % intervals over seeds:", "", "| epoch | " + " | ".join(columns.values()) + " |"]
    lines += ["|" + "---|" * (len(columns) + 1)]
    for epoch, row in rows.items():
        cells = ["" if all(v is None for v in row[name]) else interval(row[name]) for name in columns]
        lines.append(f"| {epoch} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n", (recipe, what, interval(base), interval(tuned), interval(judge), len(folders), epochs, made)


def failures(recipe, seeds, args):
    """What the runs that stopped said last."""
    told = {(folder(recipe, s, args) / "failure.txt").read_text().strip().splitlines()[-1] for s in seeds}
    return "\n".join(["", f"**{len(seeds)} run(s) stopped:**", "", *sorted(told), ""])


def write(recipes, args):
    """A page for each recipe with finished runs, and the table of all."""
    out, table = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        seeds = range(args.seeds or 10)
        done = [folder(recipe, s, args) for s in seeds if (folder(recipe, s, args) / "result.json").exists()]
        failed = [s for s in seeds if (folder(recipe, s, args) / "failure.txt").exists() and folder(recipe, s, args) not in done]
        if not done and not failed:
            continue
        text = "\n".join([f"# {recipe}", "", MADE, "", *header(recipe), "", ""])
        if done:
            measured, summary = page(recipe, done)
            text += measured
            table.append(summary)
        if failed:
            text += failures(recipe, failed, args)
        (out / f"{recipe}.md").write_text(text)
    lines = ["# Methods, measured", "", MADE, ""]
    # What most recipes were changed in goes without saying in their rows.
    kinds = collections.Counter(tuple(row[-1]) for row in table)
    common = kinds.most_common(1)[0][0] if kinds else ()
    lines += [f"Held-out prompts of the embedded world, with 95 % intervals over seeds. Changes to the recipes: {listed(common)}.", ""]
    lines += [UNTUNED, ""]
    lines += ["| recipe | measure | base | tuned | judge, tuned | seeds | epochs | other changes |", "|---" * 8 + "|"]
    for r, w, b, t, j, n, e, made in table:
        other = [change for change in made if change not in common]
        lines.append(f"| [{r}]({r}.md) | {w} | {b} | {t} | {j} | {n} | {e} | {listed(other) if other else ''} |")
    (out / "README.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--elbow", default=str(ROOT / "target/release/elbow"))
    parser.add_argument("--runs", default="runs/methods")
    parser.add_argument("--out", default=str(ROOT / "docs/methods"))
    args = parser.parse_args()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: run(*job, args), [(r, s) for r in args.recipes for s in range(args.seeds)]))
    write(args.recipes, args)


if __name__ == "__main__":
    main()
