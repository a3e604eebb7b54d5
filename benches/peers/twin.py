"""The PyTorch side of the race: diffusers' SD3Transformer2DModel doing the rollout and the training step of `elbow bench`.

    python twin.py check FILE --config eager      compare one rollout and one step with FILE (`elbow bench --outputs FILE`)
    python twin.py serve FILE --config eager      answer each line `rollout` or `step` of standard input by one run of it

Both print JSON, one object a line. Configurations: eager, compile (both float32) and bf16 (eager under autocast).
"""

import argparse
import contextlib
import copy
import json
import math
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from torch import nn


class Lora(nn.Module):
    """A frozen dense layer with low-rank factors, by PEFT's names."""

    def __init__(self, layer, rank, scale):
        super().__init__()
        self.layer, self.scale = layer, scale
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.lora_B(self.lora_A(x)) * self.scale


class File:
    """What `elbow bench --outputs` wrote."""

    def __init__(self, path):
        self.file = safe_open(path, "pt")
        self.facts = json.loads(self.file.metadata()["elbow"])

    def tensors(self, prefix):
        names = [n for n in self.file.keys() if n.startswith(prefix + ".")]
        return {n[len(prefix) + 1 :]: self.file.get_tensor(n) for n in names}


def network(file, trained):
    """The model with the file's weights, and its trained parameters by the file's names. `trained` is current or behavior."""
    n = dict(file.facts["network"])
    width = n["attention_head_dim"] * n["num_attention_heads"]
    n |= dict(caption_projection_dim=width, out_channels=n["in_channels"])
    model = SD3Transformer2DModel(**n)
    model.load_state_dict(file.tensors("base"))
    values, lora = file.tensors(trained), file.facts["lora"]
    if lora is not None:
        model.requires_grad_(False)
        for path in sorted({name.partition(".lora_")[0] for name in values}):
            parent, _, leaf = path.rpartition(".")
            layer = Lora(model.get_submodule(path), lora["rank"], lora["alpha"] / lora["rank"])
            setattr(model.get_submodule(parent), leaf, layer)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert parameters.keys() == values.keys(), sorted(parameters.keys() ^ values.keys())
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(values[name])
    return model, parameters


def share_frozen(model, other):
    """Lets `other` use the frozen weights of `model`: both programs keep one copy of the base."""
    own = dict(model.named_parameters())
    for name, p in other.named_parameters():
        if not own[name].requires_grad:
            p.data = own[name].data


def grid(steps, shift):
    """SD3's times: evenly from 1 to the shifted 1/1000, shifted again, then 0."""
    shifted = lambda t: shift * t / (1 + (shift - 1) * t)
    last = shifted(0.001)
    even = [1 + (last - 1) * i / (steps - 1) for i in range(steps)]
    return [shifted(t) for t in even] + [0.0]


class Twin:
    def __init__(self, file, config, rows):
        self.rows, self.sampler, o = rows, file.facts["sampler"], file.facts["optimizer"]
        self.current, self.trained = network(file, "current")
        behavior, self.lagged = network(file, "behavior")
        share_frozen(self.current, behavior)
        behavior.requires_grad_(False)
        self.average = [p.detach().clone() for p in self.trained.values()]
        self.max_grad_norm, self.steps = o["max_grad_norm"], 0
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=o["learning_rate"],
            betas=(o["beta1"], o["beta2"]),
            eps=o["epsilon"],
            weight_decay=o["weight_decay"],
            fused=True,
        )
        autocast = lambda: torch.autocast("cpu", torch.bfloat16) if config == "bf16" else contextlib.nullcontext()
        compiled = (lambda model: torch.compile(model)) if config == "compile" else (lambda model: model)

        def field(model):
            forward = compiled(model)

            def velocity(x, t, tokens, pooled):
                with autocast():
                    v = forward(x, tokens, pooled, t * 1000.0, return_dict=False)
                return v[0].float()

            return velocity

        self.velocity, self.behavior = field(self.current), field(behavior)

    @torch.no_grad()
    def spoil(self):
        """What the comparison has to notice: the middle one of the trained matrices of the blocks, in both sets of weights."""
        matrices = [name for name, p in self.trained.items() if name.startswith("transformer_blocks.") and p.dim() == 2]
        for parameters in (self.trained, self.lagged):
            parameters[matrices[len(matrices) // 2]].mul_(1.1)

    def parts(self, *tensors):
        return zip(*(t.split(self.rows) for t in tensors))

    @torch.inference_mode()
    def rollout(self, start, tokens, pooled):
        return torch.cat([self.dpm2(*part) for part in self.parts(start, tokens, pooled)])

    def dpm2(self, x, tokens, pooled):
        """DPM-Solver++(2M) on the rectified flow, as diffusers' scheduler; first order at both ends."""
        times, steps = grid(self.sampler["steps"], self.sampler["shift"]), self.sampler["steps"]
        log_snr = lambda t: math.log((1 - t) / t)
        previous = None
        for k in range(steps):
            t, next_t = times[k], times[k + 1]
            v = self.behavior(x, torch.full((len(x),), t), tokens, pooled)
            clean = x - t * v
            target = clean
            if 2 <= k < steps - 1:  # ln(α/σ) is infinite at t = 1 and t = 0
                r = (log_snr(t) - log_snr(times[k - 1])) / (log_snr(next_t) - log_snr(t))
                target = clean + (clean - previous) * (0.5 / r)
            shrink = (1 - t) * next_t / (t * (1 - next_t))
            x = x * (next_t / t) + target * ((1 - next_t) * (1 - shrink))
            previous = clean
        return x

    def log_prob(self, velocity, target, t):
        """Adaptive ELBO in float64 at guidance 1."""
        error = velocity.double() - target.double()
        square = error.square().flatten(1).mean(1)
        size = (error.detach().abs().flatten(1).mean(1) * t).clamp_min(1e-5)
        return -square * t.square() / size

    def step(self, clean, noise, t, tokens, pooled, advantages):
        """One optimizer step on PEPG, −sg(ρ) (A − sg(ln ρ)) L; returns what it saw."""
        total = len(clean)
        seen = []
        for clean, noise, t, tokens, pooled, advantages in self.parts(clean, noise, t, tokens, pooled, advantages):
            wide, column = t.double(), t[:, None, None, None]
            x, target = (1 - column) * clean + column * noise, noise - clean
            log_prob = self.log_prob(self.velocity(x, t, tokens, pooled), target, wide)
            with torch.no_grad():
                behavior = self.log_prob(self.behavior(x, t, tokens, pooled), target, wide)
            log_ratio = log_prob.detach() - behavior
            loss = (log_ratio - advantages) * log_prob * log_ratio.exp()
            (loss.sum() / total).backward()
            seen.append((loss.detach(), log_ratio))
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.max_grad_norm)
        gradient = {name: p.grad for name, p in self.trained.items()}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.move_averages()
        losses, log_ratios = (torch.cat(values) for values in zip(*seen))
        return losses, log_ratios, norm, gradient

    @torch.no_grad()
    def move_averages(self):
        """The moving average, and the behavior weights halfway to the current ones."""
        self.steps += 1
        decay = min(0.9, (1 + self.steps) / (10 + self.steps))
        current = [p.detach() for p in self.trained.values()]
        torch._foreach_lerp_(self.average, current, 1 - decay)
        torch._foreach_lerp_([p.data for p in self.lagged.values()], current, 0.5)


def inputs(file):
    rollout, step = file.tensors("input.rollout"), file.tensors("input.step")
    step["advantages"] = step["advantages"].double()
    return (
        [rollout[n] for n in ("start", "tokens", "pooled")],
        [step[n] for n in ("clean", "noise", "time", "tokens", "pooled", "advantages")],
    )


def check(twin, file):
    """Relative L2 differences to the file, of each output and of every gradient."""
    rollout, step = inputs(file)
    off = lambda got, expected: ((got - expected).norm() / expected.norm().clamp_min(1e-30)).item()
    images = twin.rollout(*rollout)
    losses, log_ratios, norm, gradient = twin.step(*step)
    expected = file.tensors("output")
    gradients = {name: off(gradient[name], g) for name, g in file.tensors("gradient").items()}
    worst = max(gradients, key=gradients.get)
    return {
        "images": off(images, expected["rollout.images"]),
        "losses": off(losses, expected["step.losses"]),
        "log_ratios": off(log_ratios, expected["step.log_ratios"]),
        "grad_norm": off(norm, expected["step.grad_norm"][0]),
        "gradients": len(gradients),
        "gradient": gradients[worst],
        "worst": worst,
    }


def serve(twin, file):
    """Fresh noise and no transfer between runs, as in training."""
    (start, *rollout), (clean, noise, *rest) = inputs(file)
    loops = {
        "rollout": lambda: twin.rollout(torch.randn_like(start), *rollout),
        "step": lambda: twin.step(clean, torch.randn_like(noise), *rest),
    }
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        loops[line.strip()]()
        print(json.dumps({"loop": line.strip(), "ms": (time.perf_counter() - begin) * 1e3}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["check", "serve"])
    parser.add_argument("file")
    parser.add_argument("--config", choices=["eager", "compile", "bf16"], default="eager")
    parser.add_argument("--rows", type=int, default=64, help="images in one forward pass")
    parser.add_argument("--break", dest="broken", action="store_true", help="make one trained matrix wrong by a tenth")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = File(args.file)
    twin = Twin(file, args.config, args.rows)
    if args.broken:
        twin.spoil()
    if args.mode == "check":
        print(json.dumps(check(twin, file)))
    else:
        serve(twin, file)
