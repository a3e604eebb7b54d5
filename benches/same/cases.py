"""What is run, and what is called otherwise in another version: all that has to be changed when a version renames something."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Fields of recipes: the name used below -> names of other versions. A program is given the first that it knows by
# `elbow config --explain`; None means that it may do without.
FIELDS = {
    "batch.rows": ["batch.micro_batch"],
    "eval.measure.rows": ["eval.measure.micro_batch"],
    "top_up.groups": ["collection.extra_groups"],
    "drafts.count": ["collection.count"],
    "replay.prompts": ["collection.prompts"],
    "replay.groups": ["collection.groups"],
    "replay.images": ["collection.samples"],
}

# Recipes: the name used below -> names of other versions.
RECIPES = {}

# Tensors of checkpoints as `file:tensor`, each rule a regular expression of the base's names and what the head has in its place. A name
# that both have is compared with itself; of the rules, the first whose result the head has is taken. A tensor of another name may be of
# another shape, if it holds as many numbers.
TENSORS = [(r"replay\.safetensors:(.*)", r"collection.safetensors:path.\1")]

# Keys of metrics.jsonl, in the same way.
METRICS = [(r"drafts", r"prefilter_samples"), (r"draft_(.*)", r"prefilter_\1")]

# What only one of the two may have, tensors as `file:tensor` and keys of metrics, as regular expressions of whole names.
ONLY_BASE = []
ONLY_HEAD = []

# What a run draws and evaluates with, the file that a reader looks at first.
WEIGHTS = "weights"

# Metrics that depend on the machine.
MACHINE = r"time_.*|(images|samples)_per_second"

COMMON = [
    "seed=0",
    "epochs=3",
    "eval.measure.images_per_prompt=1",
    "eval.measure.every=1",
    "eval.measure.sampler.steps=4",
    "keep.checkpoint_every=1",
    "keep.checkpoints=3",
    "keep.images_every=0",
]
NANO = ["eval.prompts_per_task=2"]
SMALL = ["batch.groups=4", "batch.group_size=6", "batch.rows=5", "sampler.steps=6"]
FOLDER = [
    "batch.groups=2",
    "batch.group_size=3",
    "batch.updates=1",
    "batch.rows=4",
    "sampler.steps=3",
    "reward.kind=jpeg",
    "model.resolution=32",
    "model.cache=cache",
    "prompts.train=prompts.txt",
    "prompts.test=prompts.txt",
    "optimizer.learning_rate=3e-3",
]
# Prompts of the model folders.
PROMPTS = "a red cat\na photo of 3 dogs\nhorse\n"


@dataclass(frozen=True)
class Case:
    """One recipe at a small size."""

    name: str
    recipe: str
    sets: list
    # Of diffusers' format, put together from fixtures/: "sd3", "flux" or "sd1".
    model: str | None = None
    # Metrics that must lie above 0 on the base, in these epochs or, if there are none, in at least one: else the case does not test what it
    # is there for.
    above_zero: dict = field(default_factory=dict)

    def judged(self):
        """The last epoch that a tolerance judges. The size of a JPEG file jumps by whole bytes, so that a difference of rounding in one epoch
        is none of rounding in the next."""
        return 1 if "compressibility" in self.recipe or self.model else 3


def nano(recipe, *sets, about=None, **above_zero):
    return Case(f"{recipe}, {about}" if about else recipe, recipe, [*COMMON, *NANO, *SMALL, *sets], None, above_zero)


def folder(recipe, model, *sets):
    return Case(recipe, recipe, [*COMMON, *FOLDER, *sets], model)


CASES = [
    nano("nano-geneval"),
    nano("nano-geneval", "model.tuning.kind=lora", "model.tuning.rank=4", about="adapters"),
    nano("nano-flow-grpo", clipfrac=(1, 2, 3)),
    nano("nano-flow-grpo", "reward.mode=strict", "batch.group_size=3", about="groups that agree", zero_std_ratio=()),
    nano("nano-diffusion-nft", "behavior.rate=0.1"),
    nano("nano-op-grpo", "replay.prompts=4", "replay.groups=2", "replay.images=2", replayed=(2, 3)),
    nano("nano-dapo", "reward.mode=strict", "batch.group_size=4", "top_up.groups=5", extra_groups=(1, 2, 3), clipfrac=()),
    nano("nano-sol-rl", "batch.groups=2", "drafts.count=18", "behavior.rate=0.1", drafts=(1, 2, 3)),
    nano("nano-tempflow-grpo", "sampler.rule.points=2", "sampler.rule.explorations=3", clipfrac=()),
    nano("nano-mix-grpo", "sampler.rule.size=2", "sampler.rule.every=1", clipfrac=()),
    nano("nano-ddpo-compressibility"),
    folder("sd3.5-geneval", "sd3", "model.text_length=24", "model.checkpointing=block"),
    folder("sd3.5-flow-grpo", "sd3", "model.text_length=24", "batch.updates=2"),
    folder("flux-dance-grpo", "flux", "model.text_length=24", "model.decode_slice=3", "batch.updates=2"),
    folder("sd1.5-ddpo-compressibility", "sd1", "batch.updates=2", "sampler.guidance=2.0"),
]

# What a model folder consists of: where in fixtures/ it lies, and where it goes.
PARTS = {
    "sd3": {
        "text/clip-words": "tokenizer",
        "text/clip-words-bang": "tokenizer_2",
        "text/t5-words": "tokenizer_3",
        "text/clip-l-projected": "text_encoder",
        "text/clip-g": "text_encoder_2",
        "text/t5": "text_encoder_3",
    },
    "flux": {
        "text/clip-words": "tokenizer",
        "text/t5-words": "tokenizer_2",
        "text/clip-l": "text_encoder",
        "text/t5": "text_encoder_2",
    },
    "sd1": {"text/clip-words": "tokenizer", "text/clip-l": "text_encoder"},
}


def build_model(pipeline, to):
    """A tiny model folder, as the tests have it."""
    fixtures = ROOT / "fixtures"
    network, vae = ("unet", "sd1") if pipeline == "sd1" else ("transformer", "sd3")
    weights = "diffusion_pytorch_model.safetensors"
    files = {
        f"text/{pipeline}.json": "model_index.json",
        f"pipeline/{pipeline}.network.json": f"{network}/config.json",
        f"pipeline/{pipeline}.network.safetensors": f"{network}/{weights}",
        f"vae/{vae}.json": "vae/config.json",
        f"vae/{vae}.weights.safetensors": f"vae/{weights}",
        f"pipeline/{pipeline}.scheduler.json": "scheduler/scheduler_config.json",
    }
    for source, target in PARTS[pipeline].items():
        shutil.copytree(fixtures / source, to / target)
    for source, target in files.items():
        (to / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fixtures / source, to / target)
