"""How far two runs lie apart: every tensor of every checkpoint by its bits, every record of metrics.jsonl by its numbers."""

import array
import json
import math
import operator
import re
import sys
from dataclasses import dataclass, field, replace

import cases

# Smaller numbers of metrics count as this large: a mean that is zero but for rounding has no relative difference.
FLOOR = 1e-6


@dataclass
class Difference:
    """What two runs differ in; nothing, if they are the same."""

    # Tensors and metrics that one of them lacks, as sentences.
    missing: list = field(default_factory=list)
    # (epoch, file) -> ‖a − b‖ / ‖a‖; only files with another bit.
    files: dict = field(default_factory=dict)
    # (epoch, file) -> ‖a − b‖ / ‖a − c‖, c being the file of the first checkpoint; only files with another bit.
    ways: dict = field(default_factory=dict)
    # (epoch, key) -> (a, b)
    metrics: dict = field(default_factory=dict)
    # Tensors and numbers compared.
    tensors: int = 0
    numbers: int = 0

    def same(self):
        return not (self.missing or self.files or self.metrics)

    def first(self):
        """The first epoch in which something differs."""
        return min((epoch for epoch, _ in [*self.files, *self.metrics]), default=None)

    def worst_file(self):
        return max(self.files.values(), default=0.0)

    def worst_metric(self):
        return max((relative(*pair) for pair in self.metrics.values()), default=0.0)

    def until(self, epoch):
        """What differs up to an epoch."""
        early = lambda found: {entry: value for entry, value in found.items() if entry[0] <= epoch}
        return replace(self, files=early(self.files), ways=early(self.ways), metrics=early(self.metrics))


def compare(base, head):
    """The difference of two finished run folders."""
    difference = Difference()
    compare_checkpoints(base, head, difference)
    compare_metrics(base, head, difference)
    return difference


def compare_checkpoints(base, head, difference):
    ours, theirs = checkpoints(base), checkpoints(head)
    for epoch in sorted({*ours, *theirs}):
        if epoch not in ours or epoch not in theirs:
            difference.missing.append(f"only {'head' if epoch not in ours else 'base'} has checkpoint {epoch}")
            continue
        a, b = tensors(ours[epoch]), tensors(theirs[epoch])
        pairs = paired(a, b, cases.TENSORS, f"checkpoint {epoch}: ", difference.missing)
        difference.tensors += len(pairs)
        b = {name: b[name] if name == renamed else reshaped(b[renamed], a[name]) for name, renamed in pairs.items()}
        other = {file(name) for name in pairs if a[name] != b[name]}
        first = tensors(ours[min(ours)]) if other else {}
        for changed in sorted(other):
            inside = [name for name in pairs if file(name) == changed]
            error = math.sqrt(sum(distance(a[name], b[name]) for name in inside))
            difference.files[epoch, changed] = share(error, math.sqrt(sum(distance(a[name]) for name in inside)))
            if epoch > min(ours) and all(name in first and first[name][:2] == a[name][:2] for name in inside):
                way = math.sqrt(sum(distance(a[name], first[name]) for name in inside))
                difference.ways[epoch, changed] = share(error, way)


def compare_metrics(base, head, difference):
    ours, theirs = records(base), records(head)
    for epoch in sorted({*ours, *theirs}):
        if epoch not in ours or epoch not in theirs:
            difference.missing.append(f"only {'head' if epoch not in ours else 'base'} has a record of epoch {epoch}")
            continue
        a, b = ours[epoch], theirs[epoch]
        pairs = paired(a, b, cases.METRICS, f"record {epoch}: ", difference.missing)
        difference.numbers += len(pairs)
        difference.metrics |= {(epoch, key): (a[key], b[theirs]) for key, theirs in pairs.items() if a[key] != b[theirs]}


def paired(a, b, rules, where, missing):
    """The base's name -> the head's name of all that both have; what one lacks is added to `missing`."""
    pairs = {}
    for name in a:
        found = [candidate for candidate in names(name, rules) if candidate in b]
        if found:
            pairs[name] = found[0]
        elif not matches(cases.ONLY_BASE, name):
            missing.append(f"{where}only base has {name}")
    further = set(b) - set(pairs.values())
    missing.extend(f"{where}only head has {name}" for name in sorted(further) if not matches(cases.ONLY_HEAD, name))
    return pairs


def names(name, rules):
    """A name, and what it may be in another version."""
    return [name, *(re.sub(pattern, to, name) for pattern, to in rules if re.fullmatch(pattern, name))]


def matches(patterns, name):
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def file(name):
    return name.rpartition(".safetensors:")[0]


def checkpoints(run):
    """Epoch -> folder."""
    folders = (run / "checkpoints").glob("checkpoint-*")
    return {int(folder.name.rpartition("-")[2]): folder for folder in folders}


def tensors(folder):
    """`file:tensor` -> type, shape and bytes, of all files of a checkpoint."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        content = memoryview(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(bytes(content[8:start]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            # A tensor that only one version names so may be flat in the other.
            flat = any(re.fullmatch(old, f"{path.relative_to(folder).as_posix()}:{name}") for old, _ in cases.TENSORS)
            shape = (math.prod(entry["shape"]),) if flat else tuple(entry["shape"])
            held = (entry["dtype"], shape, content[start + begin : start + end])
            found[f"{path.relative_to(folder).as_posix()}:{name}"] = held
    return found


def reshaped(tensor, like):
    """A tensor under another name may have another shape too."""
    kind, shape, data = tensor
    return (kind, like[1] if math.prod(shape) == math.prod(like[1]) else shape, data)


def distance(a, b=None):
    """‖a − b‖², or ‖a‖²; infinite if the two are of different types or shapes, or not numbers that are known here."""
    if b is not None and a[:2] != b[:2]:
        return math.inf
    x, y = values(a), values(b) if b is not None else None
    if x is None:
        return math.inf
    x = x if y is None else array.array("d", map(operator.sub, x, y))
    total = sum(map(operator.mul, x, x))
    return total if math.isfinite(total) else math.inf


def values(tensor):
    kind, _, data = tensor
    codes = {"F64": "d", "F32": "f", "I64": "q", "I32": "i", "U8": "B"}
    if kind not in codes:
        return None
    numbers = array.array(codes[kind])
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def share(part, whole):
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 else math.inf


def records(run):
    """Epoch -> the numbers of its record that do not depend on the machine."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["epoch"]] = {key: value for key, value in record.items() if not re.fullmatch(cases.MACHINE, key)}
    return found


def relative(a, b):
    """|a − b| by the larger of the two; 1 if one of them is null."""
    if not all(isinstance(value, (int, float)) for value in (a, b)):
        return 1.0
    return share(abs(a - b), max(abs(a), abs(b), FLOOR))
