"""Trains the same model with gptloom and with PyTorch, from the same weights on the same batches,
and compares every step: its loss, the norm of its gradient, and its learning rate.

gptloom writes the weights that its seed makes, trains, and leaves its metrics. PyTorch then makes
the same batches (the order of the data is a function of the seed alone, and is written out below
once more), and trains in fp32, or with --dtype bf16 under autocast, where gptloom stores weights
and activations in bf16: the two then round in other places.

--golden writes what PyTorch computes in double precision for a small model instead, which `make
test` holds trainings to (test/data/training.txt).

A line is printed for each hundred steps, and the largest differences. The exit code is 1 if one is
beyond its bound: two fp32 trainings part slowly, as each step passes on the roundings of those
before it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench import BYTE_VOCABULARY, ROOT, train_command, write_shard
from gpt import load_checkpoint, mean_loss

BETAS, EPSILON, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0

# Largest differences, in parts of PyTorch's value.
BOUNDS = {
    "fp32": {"loss": 5e-6, "grad_norm": 2e-4, "lr": 1e-6},
    "bf16": {"loss": 5e-3, "grad_norm": 1e-1, "lr": 1e-6},
}


# What test_train.cpp trains.
GOLDEN = {"n_layer": 2, "n_head": 2, "n_embd": 32, "batch": 4, "seq_len": 16, "steps": 20}
GOLDEN |= {"lr": 1e-2, "seed": 1, "dtype": "fp32", "device": "definition"}


def golden_ids() -> list[int]:
    """Tokens with something to learn, that are easily made anywhere."""
    return [(i * i + 7 * (i // 3)) % 251 for i in range(2000)]


# ------------------------------------------------------------------------------ the order of data
ORDER, ROUNDS, WORD = 2, 8, 0xFFFFFFFF  # csrc/data/windows.c, csrc/base/random.h


def philox(index: int, step: int, seed: int) -> list[int]:
    """Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011)."""
    c = [index & WORD, index >> 32, step, ORDER]
    k = [seed & WORD, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & WORD, (first >> 32) ^ c[3] ^ k[1], first & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def shuffled(seed: int, epoch: int, n: int, i: int) -> int:
    """Which of n windows comes as the i-th of an epoch."""
    half = 0
    while 1 << 2 * half < n:
        half += 1
    x, mask = i, (1 << half) - 1
    while half:
        left, right = x >> half, x & mask
        for turn in range(ROUNDS):
            mixed = left ^ (philox(turn << 32 | right, epoch, seed)[0] & mask)
            left, right = right, mixed
        x = left << half | right
        if x < n:
            return x
    return 0


def batch_of(ids: list[int], seed: int, T: int, batch: int, step: int):
    """Inputs and targets (batch, T) of a step; the last window is filled up with targets of -1."""
    pairs = len(ids) - 1
    windows = (pairs - 1) // T + 1
    inputs, targets = [], []
    for sequence in range(step * batch, (step + 1) * batch):
        epoch = sequence // windows
        word = philox(ROUNDS << 32, epoch, seed)
        shift = (word[0] << 32 | word[1]) % pairs
        first = shuffled(seed, epoch, windows, sequence % windows) * T
        places = [(shift + place) % pairs for place in range(first, min(first + T, pairs))]
        filling = T - len(places)
        inputs.append([ids[place] for place in places] + [0] * filling)
        targets.append([ids[place + 1] for place in places] + [-1] * filling)
    return torch.tensor(inputs), torch.tensor(targets)


# ------------------------------------------------------------------------------------- trainings
def train_with_gptloom(arguments: argparse.Namespace, data: Path, scratch: Path) -> list[dict]:
    """Trains; returns the metrics. A run of one step at a rate that changes nothing leaves the
    weights that the seed makes."""
    shared = {
        "data": data,
        "vocab-size": BYTE_VOCABULARY,
        "batch": arguments.batch,
        "micro-batch": arguments.batch,
        "seq-len": arguments.seq_len,
        "seed": arguments.seed,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPSILON,
        "weight-decay": WEIGHT_DECAY,
        "clip": CLIP,
        "val-fraction": 0,
        "val-every": 0,
        "sample-every": 0,
        "device": arguments.device,
        "n-layer": arguments.n_layer,
        "n-head": arguments.n_head,
        "n-embd": arguments.n_embd,
        "block-size": arguments.seq_len,
    }
    begin = shared | {"out": scratch / "begin", "steps": 1, "lr": 1e-30, "min-lr": 0, "warmup": 0}
    run = shared | {
        "out": scratch / "run",
        "steps": arguments.steps,
        "lr": arguments.lr,
        "min-lr": arguments.lr / 10,
        "warmup": arguments.steps // 20,
        "schedule": "cosine",
        "dtype": arguments.dtype,
    }
    for flags in (begin, run):
        command = train_command(arguments.gptloom, flags)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"train_parity.py: gptloom failed:\n{done.stdout}")
    lines = (scratch / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def rate_at(step: int, arguments: argparse.Namespace) -> float:
    """A warm-up, and a cosine from --lr to a tenth of it."""
    warmup, steps = arguments.steps // 20, arguments.steps
    if step < warmup:
        return arguments.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup - 1)
    return arguments.lr * (1 - 0.9 * 0.5 * (1 - math.cos(math.pi * done)))


def train_with_pytorch(
    arguments: argparse.Namespace, ids: list[int], begin: Path, dtype: torch.dtype
) -> list[dict]:
    """Trains from the weights in `begin`; returns what gptloom's metrics have."""
    model = load_checkpoint((begin / "checkpoints" / "latest").resolve()).to(dtype).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
    )
    rows = []
    for step in range(arguments.steps):
        tokens, targets = batch_of(ids, arguments.seed, arguments.seq_len, arguments.batch, step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.dtype == "bf16"):
            loss = mean_loss(model(tokens), targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rows.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": rate_at(step, arguments)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--n-layer", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--n-head", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--n-embd", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=BOUNDS, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="gptloom's (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT / "README.md", help="a text, as bytes (default: README.md)")
    parser.add_argument(
        "--gptloom", type=Path, default=ROOT / "build" / "gptloom", help="(default: %(default)s)"
    )
    parser.add_argument("--golden", type=Path, metavar="FILE", help="write test/data/training.txt")
    arguments = parser.parse_args()
    if arguments.golden:
        vars(arguments).update(GOLDEN)
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    ids = golden_ids() if arguments.golden else list(arguments.data.read_bytes())
    dtype = torch.float64 if arguments.golden else torch.float32
    with tempfile.TemporaryDirectory(prefix="gptloom-parity-") as directory:
        scratch = Path(directory)
        write_shard(scratch / "data.bin", ids)
        ours = train_with_gptloom(arguments, scratch / "data.bin", scratch)
        theirs = train_with_pytorch(arguments, ids, scratch / "begin", dtype)
    if len(ours) != len(theirs):
        sys.exit(f"train_parity.py: gptloom has metrics of {len(ours)} steps, not of {len(theirs)}")

    if arguments.golden:
        lines = [f"{row['loss']:.10g} {row['grad_norm']:.10g} {row['lr']:.10g}\n" for row in theirs]
        about = f"# loss, gradient's norm, learning rate: train_parity.py, PyTorch {torch.__version__}\n"
        arguments.golden.write_text(about + "".join(lines))

    bounds = BOUNDS[arguments.dtype]
    largest = {name: (0.0, 0) for name in bounds}
    print(f"{'step':>6} {'loss: gptloom':>14} {'PyTorch':>10} {'norm: gptloom':>14} {'PyTorch':>10}")
    for step, (a, b) in enumerate(zip(ours, theirs), start=1):
        for name in bounds:
            difference = abs(a[name] - b[name]) / abs(b[name])
            largest[name] = max(largest[name], (difference, step))
        if step == 1 or step % 100 == 0 or step == len(ours):
            print(
                f"{step:6} {a['loss']:14.6f} {b['loss']:10.6f} {a['grad_norm']:14.6f} "
                f"{b['grad_norm']:10.6f}"
            )
    failed = False
    for name, (difference, step) in largest.items():
        good = difference <= bounds[name]
        failed = failed or not good
        print(
            f"{'ok  ' if good else 'FAIL'} {name:10} differs by {difference:.2e} of PyTorch's at most "
            f"(step {step}); {bounds[name]:.0e} is allowed"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
