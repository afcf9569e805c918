#!/usr/bin/env python3
"""Gradient checkpointing measured: what each policy plans, what its process really takes, and how fast it trains.

    dev/memory-report.py [--model gpt2] [--seq-len 1024] [--rounds 2] [--out dev/reports]

Each policy trains in a process of its own, in turns, on the same random tokens; a policy's speed in a round is that of
its fastest step after the first, as other work on the machine only ever slows steps down. Real memory is the largest
anonymous memory of the process, less what it had before the model (that of a model of next to nothing). The table goes
to OUT/DATE-recompute.md, and to the terminal.
"""

import argparse
import array
import datetime
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("none", "act", "norm", "block-attn", "block", "sqrt")
SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256
MIB = 1 << 20


def write_shard(path: Path, vocabulary: int, count: int) -> None:
    """An llm.c token shard of random ids, the same every time."""
    generator = random.Random(1)
    header = array.array("i", [SHARD_MAGIC, SHARD_VERSION, count])
    header.extend([0] * (SHARD_HEADER_INTS - len(header)))
    ids = array.array("H", (generator.randrange(vocabulary) for _ in range(count)))
    path.write_bytes(header.tobytes() + ids.tobytes())


def anonymous_memory(pid: int) -> int:
    """Bytes; 0 when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def train(options, policy: str, data: Path, shape: list[str], steps: int) -> dict:
    """A short run; its plan, the milliseconds of each step and its largest anonymous memory."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command = [options.program, "train", "--quiet", "--data", data, "--val-fraction", "0", "--out", run, *shape]
        command += ["--batch", options.batch, "--micro-batch", options.batch, "--steps", steps, "--sample-every", "0"]
        command += ["--recompute", policy, "--device", "cpu", "--dtype", options.dtype]
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        largest = 0
        while process.poll() is None:
            largest = max(largest, anonymous_memory(process.pid))
            time.sleep(0.02)
        if process.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}: {process.stderr.read().strip()}")
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        plan = json.loads((run / "plan.json").read_text())
        return {
            "planned": plan["bytes"]["all"],
            "bytes": plan["bytes"],
            "real": largest,
            "ms": [line["ms"] for line in metrics],
            "loss": [line["loss"] for line in metrics],
        }


def plan(options) -> dict:
    """What `gptloom plan` says of each policy: extra operations."""
    command = [options.program, "plan", "--model", options.model, "--seq-len", options.seq_len, "--dtype", options.dtype]
    command += ["--batch", options.batch, "--micro-batch", options.batch, "--no-measure", "--on", "cpu", "--json", "-"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return {row["recompute"]: row for row in json.loads(done.stdout)["policies"]}


def machine(options) -> str:
    """What `gptloom devices` says the CPU is."""
    text = subprocess.run([str(options.program), "devices"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    return next((words[1] for words in lines if len(words) == 2 and words[0] == "is"), "a CPU")


def table(options, results: dict, extra: dict, baseline: int) -> list[str]:
    tokens = options.batch * options.seq_len
    best = {policy: [min(run["ms"][1:]) for run in runs] for policy, runs in results.items()}
    lines = [
        "| policy | planned | real | tokens/s | time / none, each round | extra operations |",
        "|---|---|---|---|---|---|",
    ]
    for policy, runs in results.items():
        ratios = [mine / none for mine, none in zip(best[policy], best["none"])]
        lines.append(
            f"| {policy} | {runs[0]['planned'] / MIB:.1f} MiB "
            f"| {(max(run['real'] for run in runs) - baseline) / MIB:.1f} MiB "
            f"| {tokens / statistics.median(best[policy]) * 1000:.1f} "
            f"| {', '.join(f'{ratio:.2f}' for ratio in ratios)} "
            f"| {100 * extra[policy]['extra_flops']:.1f} % |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "gptloom")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--steps", type=int, default=3, help="of each run; the first is not counted (default 3)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each policy, in turns (default 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "dev" / "reports")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: the first step is not counted; take at least 2")

    extra = plan(options)
    results: dict = {policy: [] for policy in POLICIES}
    with tempfile.TemporaryDirectory() as directory:
        shard, text = Path(directory) / "tokens.bin", Path(directory) / "text"
        write_shard(shard, 50257, 4 * options.batch * options.seq_len * options.steps)
        text.write_bytes(bytes(random.Random(1).randrange(256) for _ in range(10000)))
        small = ["--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--seq-len", 8]
        nothing = train(argparse.Namespace(**{**vars(options), "batch": 1}), "none", text, small, 2)
        baseline = max(0, nothing["real"] - int(nothing["planned"]))
        for number in range(options.rounds):
            for policy in POLICIES:
                run = train(options, policy, shard, ["--model", options.model, "--seq-len", options.seq_len], options.steps)
                print(f"round {number + 1}: {policy}: {min(run['ms'][1:]):.0f} ms a step", flush=True)
                if results["none"] and run["loss"] != results["none"][0]["loss"]:
                    sys.exit(f"{policy}: its losses are not those of 'none'")
                results[policy].append(run)

    date = datetime.date.today().isoformat()
    report = [
        f"# Recomputing activations, {date}",
        "",
        f"`dev/memory-report.py --model {options.model} --seq-len {options.seq_len} --batch {options.batch} "
        f"--dtype {options.dtype} --steps {options.steps} --rounds {options.rounds}` on {machine(options)}",
        "",
        *table(options, results, extra, baseline),
        "",
        "Planned is the arena, to the byte; real is the largest anonymous memory of the process, less the "
        f"{baseline / MIB:.0f} MiB that a process with a model of next to nothing has. Losses were the same to the last bit.",
        "",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{date}-recompute.md"
    path.write_text("\n".join(report))
    print("\n".join(report), f"\nwritten to {path}")


if __name__ == "__main__":
    main()
