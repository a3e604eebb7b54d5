#!/usr/bin/env python3
"""Runs recipes with several seeds and writes what came of it to docs/methods/: a page a recipe, and a table of all.

    python3 benches/methods.py nano-geneval nano-diffusion-nft --seeds 3 --epochs 30

Needs the release build and Python 3.9 alone. Runs are kept in --runs; what is finished there is not run again, and what was
cut off goes on where it stopped, so the same command may be given until it is through.
"""

import argparse
import json
import math
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def run(recipe, seed, args):
    """The folder of a finished run."""
    folder = Path(args.runs) / f"{recipe}-{args.epochs}-seed{seed}"
    changes = [f"seed={seed}", f"epochs={args.epochs}", f"eval.measure.every={args.every}", "keep.checkpoint_every=10"]
    if not (folder / "result.json").exists():
        begin = ["--resume", str(folder)] if folder.exists() else [recipe, "--run", str(folder)]
        sets = [] if folder.exists() else [part for change in changes for part in ("--set", change)]
        print(f"{recipe}, seed {seed}", flush=True)
        subprocess.run([args.elbow, "train", *begin, *sets], check=True, stdout=subprocess.DEVNULL)
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interval(values):
    """Mean, and half the width of its 95 % interval where there are several."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T95[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def curve(folders):
    """Held-out score, training reward and judge by epoch: epoch -> column -> one value a seed."""
    rows = {}
    for folder in folders:
        measured = [r["epoch"] for r in records(folder) if "eval_reward_geneval" in r]
        for record in records(folder):
            for name in ("eval_reward_geneval", "eval_reward_judge", "reward_geneval"):
                if record["epoch"] in measured and record.get(name) is not None:
                    rows.setdefault(record["epoch"], {}).setdefault(name, []).append(record[name])
    return dict(sorted(rows.items()))


def seconds(folder):
    times = [r["time_rollout"] + r["time_update"] for r in records(folder) if "time_rollout" in r]
    return statistics.median(times)


def page(recipe, folders, args):
    header = []
    for line in (ROOT / "recipes" / f"{recipe}.toml").read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line[1:].strip())
    results = [json.loads((f / "result.json").read_text()) for f in folders]
    base = [r["base"]["eval_reward_geneval"] for r in results]
    tuned = [r["tuned"]["eval_reward_geneval"] for r in results]
    judge = [r["tuned"]["eval_reward_judge"] for r in results]
    learns = all(t > b + 0.02 for t, b in zip(tuned, base))
    lines = [f"# {recipe}", "", "<!-- Made by benches/methods.py -->", "", *header, ""]
    lines += [f"Measured with {len(folders)} seed(s), {args.epochs} epochs of {seconds(folders[0]):.1f} s (median of seed 0; other work may have run).", ""]
    if not learns:
        lines += ["**It does not learn here**, or not with every seed, in so many epochs.", ""]
    lines += ["| seed | base | tuned | judge, tuned |", "|---|---|---|---|"]
    lines += [f"| {i} | {b:.3f} | {t:.3f} | {j:.3f} |" for i, (b, t, j) in enumerate(zip(base, tuned, judge))]
    lines += ["", "By task, tuned, mean of the seeds:", "", "| " + " | ".join(TASKS) + " |", "|" + "---|" * len(TASKS)]
    by_task = [statistics.fmean(r["tuned"][f"eval_reward_geneval_{task}"] for r in results) for task in TASKS]
    lines += ["| " + " | ".join(f"{v:.2f}" for v in by_task) + " |", ""]
    rows = curve(folders)
    lines += ["Held-out curve:", "", "| epoch | strict score | judge | training reward |", "|---|---|---|---|"]
    for epoch, row in rows.items():
        cells = [interval(row[n]) if n in row else "" for n in ("eval_reward_geneval", "eval_reward_judge", "reward_geneval")]
        lines.append(f"| {epoch} | " + " | ".join(cells) + " |")
    summary = (recipe, interval(base), interval(tuned), interval(judge), len(folders), args.epochs, seconds(folders[0]))
    return "\n".join(lines) + "\n", summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--every", type=int, default=10, help="epochs between evaluations")
    parser.add_argument("--elbow", default=str(ROOT / "target/release/elbow"))
    parser.add_argument("--runs", default="runs/methods")
    parser.add_argument("--out", default=str(ROOT / "docs/methods"))
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for recipe in args.recipes:
        text, summary = page(recipe, [run(recipe, seed, args) for seed in range(args.seeds)], args)
        (out / f"{recipe}.md").write_text(text)
        table.append(summary)
        lines = ["# Methods, measured", "", "<!-- Made by benches/methods.py -->", ""]
        lines += ["Strict scores on held-out prompts of the embedded world, with 95 % intervals over seeds where there are several.", ""]
        lines += ["| recipe | base | tuned | judge, tuned | seeds | epochs | s an epoch |", "|---|---|---|---|---|---|---|"]
        lines += [f"| [{r}]({r}.md) | {b} | {t} | {j} | {n} | {e} | {s:.1f} |" for r, b, t, j, n, e, s in table]
        (out / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
