"""Trains a GPT on a GPU with PyTorch, as fast as PyTorch's own settings make it, and prints the speed as JSON.

What dev/gpu-report.py runs beside gptloom: the model of gpt.py under torch.compile, fused attention
(scaled_dot_product_attention), bf16 autocast over fp32 master weights, fused AdamW, gradients set to None, clipping, the
classifier padded as gptloom pads it, all batches on the GPU before the clock starts, and no waiting between steps.

The last line of stdout is {"tokens_per_s", "median_ms", "peak_mib", "loss", ...}, or {"left_out": why} with exit code 3
where there is nothing to run on.
"""

import argparse
import array
import json
import statistics
import sys
import time
from pathlib import Path

SHARD_HEADER_BYTES = 1024
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
PADDING = 128  # a multiple that the classifier's rows are rounded up to


def leave_out(why: str) -> None:
    print(json.dumps({"left_out": why}))
    sys.exit(3)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a token shard in llm.c's format")
    for name, standard in {
        "n-layer": 12,
        "n-head": 12,
        "n-embd": 768,
        "vocab-size": 50257,
        "seq-len": 1024,
        "batch": 32,
        "micro-batch": 16,
        "steps": 100,
        "warmup": 20,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=standard, help="(default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args()


def read_tokens(path: Path, torch):
    content = array.array("H", path.read_bytes()[SHARD_HEADER_BYTES:])
    return torch.tensor(content, dtype=torch.int64)


def make_model(arguments: argparse.Namespace):
    from gpt import GPT, GPTConfig

    rows = (arguments.vocab_size + PADDING - 1) // PADDING * PADDING
    shape = GPTConfig(
        arguments.n_layer, arguments.n_head, arguments.n_embd, arguments.seq_len, rows
    )
    return GPT(shape).cuda()


def make_optimizer(model, torch):
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )


def train(arguments: argparse.Namespace, micro_batch: int, torch) -> dict:
    """Runs all steps; speed is that of the steps after the warm-up, from first to last."""
    from gpt import mean_loss

    torch.manual_seed(1)
    model = make_model(arguments)
    optimizer = make_optimizer(model, torch)
    accumulation = arguments.batch // micro_batch

    def loss_of(tokens, targets):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return mean_loss(model(tokens), targets)

    if not arguments.eager:
        loss_of = torch.compile(loss_of)

    ids = read_tokens(arguments.data, torch)
    starts = torch.randint(
        len(ids) - arguments.seq_len, (arguments.steps, accumulation, micro_batch)
    )
    batches = ids[starts[..., None] + torch.arange(arguments.seq_len + 1)].cuda()

    def step(batch):
        total = 0.0
        for part in batch:
            loss = loss_of(part[:, :-1], part[:, 1:]) / accumulation
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    compiling = time.perf_counter()
    for batch in batches[: arguments.warmup]:
        loss = step(batch)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    marks = [
        torch.cuda.Event(enable_timing=True) for _ in range(arguments.steps - arguments.warmup + 1)
    ]
    marks[0].record()
    for batch, mark in zip(batches[arguments.warmup :], marks[1:]):
        loss = step(batch)
        mark.record()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin

    timed = arguments.steps - arguments.warmup
    return {
        "tokens_per_s": timed * arguments.batch * arguments.seq_len / seconds,
        "median_ms": statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:])),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "loss": float(loss),
        "micro_batch": micro_batch,
        "warmup_s": begin - compiling,
        "version": torch.__version__,
        "device": torch.cuda.get_device_name(),
    }


def main() -> None:
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        leave_out("PyTorch is not installed for this python3")
    if not torch.cuda.is_available():
        leave_out(f"PyTorch {torch.__version__} sees no GPU")
    if not 0 <= arguments.warmup < arguments.steps:
        sys.exit("train_gpu.py: --warmup must be below --steps")
    torch.set_float32_matmul_precision("high")
    micro_batch = arguments.micro_batch
    while True:
        try:
            print(json.dumps(train(arguments, micro_batch, torch)))
            return
        except torch.cuda.OutOfMemoryError:
            if micro_batch == 1:
                raise
        torch.cuda.empty_cache()
        micro_batch //= 2


if __name__ == "__main__":
    main()
