"""Elbow against PyTorch: first the same numbers, then the time and memory of both, in turn.

    python race.py --elbow target/release/elbow --out docs/performance.md

For each size of network and each tuning, `elbow bench --outputs` writes weights, inputs and results of one rollout and one
training step; `twin.py check` repeats both in PyTorch, and the race stops if they differ. It also stops if the comparison does
not notice a matrix that was made wrong by a tenth. Then every program is started
afresh for each loop, warmed up, and asked for one round after the other in turn (A B C D A B C D ...): all are warm, and never
do two work at once. A round is the median of a few runs. Before that, PyTorch's best allocator and micro-batch are found by
trying.
"""

import argparse
import ctypes.util
import importlib.metadata
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Width, heads, layers; tiny only shows that the race works.
SIZES = {"nano": (128, 4, 4), "wide": (256, 8, 6), "tiny": (32, 2, 2)}
LIMITS = {"images": 1e-4, "losses": 1e-4, "log_ratios": 1e-3, "grad_norm": 1e-4, "gradient": 1e-4}
# What a racer is compared with, if not elbow in float32: its like in bf16.
BASES = {"elbow bf16": "elbow bf16", "PyTorch bf16": "elbow bf16"}
# Whatever keeps freed pages, as elbow's own allocator does (mimalloc, purge delay -1).
ALLOCATORS = {
    "glibc": {"MALLOC_MMAP_THRESHOLD_": "17179869184", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864"},
    "mimalloc": {"MIMALLOC_PURGE_DELAY": "-1"},
    "jemalloc": {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,metadata_thp:auto"},
}


def environment(allocator):
    """PyTorch's environment: the allocator, and huge pages for it where the system gives them on request."""
    chosen = {**os.environ, **ALLOCATORS[allocator], "OMP_NUM_THREADS": str(os.cpu_count())}
    if allocator != "glibc":
        chosen["LD_PRELOAD"] = ctypes.util.find_library(allocator)
    return chosen


def allocators():
    return [name for name in ALLOCATORS if name == "glibc" or ctypes.util.find_library(name)]


class Racer:
    """A program that answers each line by one run."""

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{shlex.join(self.process.args)} ended early, with exit code {self.process.wait()}")
        return json.loads(line)

    def run(self, loop):
        self.process.stdin.write(loop + "\n")
        self.process.stdin.flush()
        return self.answer()["ms"]

    def round(self, loop, runs):
        return statistics.median(self.run(loop) for _ in range(runs))

    def peak_memory(self):
        """MiB, of the whole process so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def twin(mode, file, config, rows):
    return [sys.executable, str(HERE / "twin.py"), mode, str(file), "--config", config, "--rows", str(rows)]


def elbow(args, size, tuning, rows, precision="f32"):
    hidden, heads, layers = SIZES[size]
    command = [args.elbow, "bench", "--tuning", tuning, "--precision", precision, "--batch", args.batch, "--rows", rows]
    return [str(c) for c in command + ["--hidden", hidden, "--heads", heads, "--layers", layers]]


def differences(file, config, rows, allocator, *options):
    """What `twin.py check` says, and which of it is beyond the limits."""
    command = twin("check", file, config, rows) + list(options)
    output = subprocess.run(command, env=environment(allocator), stdout=subprocess.PIPE, text=True)
    if output.returncode != 0:
        sys.exit(f"the PyTorch side failed in configuration {config}: see above")
    found = json.loads(output.stdout)
    return found, [f"{name} by {found[name]:.1e} (limit {limit:.0e})" for name, limit in LIMITS.items() if not found[name] <= limit]


def notices(file, rows):
    """The end of the race if the comparison does not see that one matrix of PyTorch's is wrong by a tenth."""
    _, wrong = differences(file, "eager", rows, "glibc", "--break")
    print(f"  with a matrix made wrong: {', '.join(wrong)}", file=sys.stderr)
    # An adapter's matrix moves images by less than their limit.
    seen = {name.split()[0] for name in wrong}
    if "gradient" not in seen or not seen & {"images", "log_ratios"}:
        sys.exit("a matrix was made wrong, and the comparison did not see it in gradients and in images or ratios: it proves nothing")


def agree(file, config, rows, allocator, *options):
    """What `twin.py check` says; the end of the race if float32 differs by more than the limits."""
    found, wrong = differences(file, config, rows, allocator, *options)
    if config != "bf16" and wrong:
        sys.exit(f"elbow and PyTorch ({config}) compute different numbers, so there is nothing to time: {', '.join(wrong)}; "
                 f"the gradient that is farthest off is that of {found['worst']}")
    return found


def best_setting(file, loop, args):
    """The allocator and rows with which PyTorch (eager) is fastest."""
    def time(setting):
        allocator, rows = setting
        with Racer(twin("serve", file, "eager", rows), environment(allocator)) as racer:
            racer.round(loop, 2)
            return racer.round(loop, max(3, args.runs))

    tried = {(a, r): time((a, r)) for a in allocators() for r in dict.fromkeys([args.batch, args.rows[0]])}
    print(f"  {loop}: " + ", ".join(f"{a}/{r} rows {ms:.0f} ms" for (a, r), ms in tried.items()), file=sys.stderr)
    return min(tried, key=tried.get)


def race(racers, loop, args):
    """Rounds of all racers in turn: name -> milliseconds."""
    for racer in racers.values():
        racer.round(loop, args.warmup)
    times = {name: [] for name in racers}
    for _ in range(args.rounds):
        for name, racer in racers.items():
            times[name].append(racer.round(loop, args.runs))
    return times


def interval(times, base):
    """95 % bootstrap interval of the ratio of medians; rounds are drawn in pairs, since neighbors share what disturbs them."""
    draw = random.Random(0)
    rounds = range(len(base))
    ratios = []
    for _ in range(4000):
        chosen = draw.choices(rounds, k=len(base))
        ratios.append(statistics.median(times[i] for i in chosen) / statistics.median(base[i] for i in chosen))
    ratios.sort()
    return ratios[100], ratios[-101]


def rows_of_table(name, loop, times, memory, settings, args):
    lines = []
    for racer, values in times.items():
        base = times[BASES.get(racer, "elbow")]
        median = statistics.median(values)
        ratio = "1" if values is base else "{:.2f} ({:.2f}–{:.2f})".format(median / statistics.median(base), *interval(values, base))
        rate = args.batch / median * 1e3
        lines.append(f"| {name} | {loop} | {racer} | {median:.1f} | {rate:.0f} | {ratio} | {memory[racer]:.0f} | {settings[racer]} |")
    return lines


def versions(args):
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    flags = next((l.split(":")[1].split() for l in open("/proc/cpuinfo") if l.startswith("flags")), [])
    wide = [f for f in flags if f.startswith(("avx", "amx", "fma"))]
    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "diffusers"))
    own = subprocess.run([args.elbow, "--version"], capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return [
        f"- {own} ({commit or 'no commit'}); Python {platform.python_version()}, {packages}",
        f"- {cpu}, {os.cpu_count()} cores, both used; {', '.join(wide)}; {platform.system()} {platform.release()}",
        f"- allocators tried for PyTorch: {', '.join(allocators())}; elbow has its own mimalloc. AdamW is the fused one.",
        f"- batch {args.batch}; {args.rounds} rounds in turn, each the median of {args.runs} run{'s' * (args.runs > 1)}, {args.warmup} before them; {date.today()}",
    ]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elbow", default=str(HERE.parent.parent / "target/release/elbow"), help="the program")
    parser.add_argument("--out", help="where the Markdown goes; standard output without it")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["nano", "wide"])
    parser.add_argument("--tunings", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--configs", nargs="+", choices=["eager", "compile", "bf16"], default=["eager", "compile", "bf16"])
    parser.add_argument("--break", dest="broken", action="store_true", help="make a matrix of PyTorch's wrong: the race must stop")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 16], metavar="N",
                        help="elbow's micro-batch, and others raced beside it; PyTorch gets the better of the first and the batch")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5, help="runs a round")
    parser.add_argument("--warmup", type=int, default=5, help="runs before the first round")
    return parser.parse_args()


def contest(size, tuning, folder, args):
    """One size and tuning: lines of the table of agreement and of the table of times."""
    name, file = f"{size}, {tuning}", folder / f"{size}-{tuning}.safetensors"
    print(name, file=sys.stderr)
    subprocess.run(elbow(args, size, tuning, args.rows[0]) + ["--outputs", str(file)], check=True)
    agreement, table = [], []
    notices(file, args.batch)
    for config in args.configs:
        found = agree(file, config, args.batch, "glibc", *(["--break"] if args.broken else []))
        numbers = " | ".join(f"{found[n]:.1e}" for n in ("images", "losses", "log_ratios", "gradient"))
        agreement.append(f"| {name} | {config} | {numbers} | {found['worst']} (of {found['gradients']}) |")
        print("  " + agreement[-1], file=sys.stderr)
    for loop in ("rollout", "step"):
        setting = best_setting(file, loop, args)
        with ExitStack() as stack:
            racers, settings = {}, {}

            def enter(racer, setting, command, env=None):
                racers[racer], settings[racer] = stack.enter_context(Racer(command, env)), setting

            for rows in args.rows:
                racer = "elbow" if rows == args.rows[0] else f"elbow, {rows} rows"
                enter(racer, f"{rows} rows", elbow(args, size, tuning, rows) + ["--serve"])
            if "bf16" in args.configs:
                enter("elbow bf16", f"{args.rows[0]} rows", elbow(args, size, tuning, args.rows[0], "bf16") + ["--serve"])
            for config in args.configs:
                command = twin("serve", file, config, setting[1])
                enter(f"PyTorch {config}", f"{setting[0]}, {setting[1]} rows", command, environment(setting[0]))
            times = race(racers, loop, args)
            memory = {racer: r.peak_memory() for racer, r in racers.items()}
        table += rows_of_table(name, loop, times, memory, settings, args)
        print("\n".join("  " + line for line in table[-len(racers):]), file=sys.stderr)
    file.unlink()
    return agreement, table


def main():
    args = arguments()
    if not Path(args.elbow).is_file():
        sys.exit(f"no program at {args.elbow}: build it with `cargo build --release`, or name it with --elbow")
    agreement, table = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for tuning in args.tunings:
                agreed, raced = contest(size, tuning, Path(folder), args)
                agreement, table = agreement + agreed, table + raced
    text = "\n".join([
        *versions(args), "",
        "Relative L2 difference between the two programs on the same weights and inputs; of the gradients, the largest:", "",
        "| network, tuning | PyTorch | images | losses | log-ratios | gradient | of |", "|---|---|---|---|---|---|---|",
        *agreement, "",
        "Medians; the ratio is PyTorch's time over elbow's in the same precision with its 95 % interval, so more than 1 means that elbow is "
        "faster. Memory is the peak of a process that ran this loop alone, libraries included:", "",
        "| network, tuning | loop | program | ms | samples/s | ratio | MiB | setting |", "|---|---|---|---|---|---|---|---|",
        *table, "",
    ])
    if args.out:
        Path(args.out).write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
