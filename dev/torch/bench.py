"""Trains the same GPT with PyTorch and with gptloom, in turns, and compares tokens per second.

Contenders: PyTorch eager, the same under torch.compile, and gptloom, in fp32; with --dtype bf16
PyTorch under autocast, gptloom in bf16, and gptloom in fp32 beside them. Each runs in a process
of its own, several rounds in turns, on the same cores and the same data; a contender's speed in
a round is that of its median step. Printed are each contender's median and quartiles over the
rounds, peak memory, and gptloom's ratio to PyTorch, of the medians and round by round: turns and
ratios cancel what else the machine does meanwhile. Several presets run one after the other;
--report writes what came of them, with the machine and the versions, for dev/reports.

PyTorch is tuned as far as its own settings go: threads pinned one to a core, fused attention
(scaled_dot_product_attention), fused AdamW, gradients set to None, batches made before the clock
starts, and an allocator that keeps large blocks instead of returning them to the system after
every step.
"""

import argparse
import array
import datetime
import json
import os
import platform
import random
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTORCH = ("eager", "compiled")
GPTLOOM, GPTLOOM_FP32 = "gptloom", "gptloom, fp32"

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256
BYTE_VOCABULARY = 257

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True)
class Preset:
    """A model, a batch, and how long to measure."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    batch: int
    seq_len: int
    steps: int
    warmup: int


PRESETS = {
    "mini": Preset(4, 4, 128, BYTE_VOCABULARY, batch=12, seq_len=64, steps=200, warmup=20),
    "gpt2": Preset(12, 12, 768, 50257, batch=4, seq_len=64, steps=12, warmup=3),
    "gpt2-1024": Preset(12, 12, 768, 50257, batch=1, seq_len=1024, steps=5, warmup=2),
    "char": Preset(6, 6, 384, BYTE_VOCABULARY, batch=12, seq_len=256, steps=8, warmup=3),
    "char-4096": Preset(6, 6, 384, BYTE_VOCABULARY, batch=1, seq_len=4096, steps=5, warmup=2),
}


# ------------------------------------------------------------------------------------------ data
def random_ids(vocab_size: int, count: int) -> list[int]:
    """The same random token ids in every run."""
    generator = random.Random(1)
    return [generator.randrange(vocab_size) for _ in range(count)]


def write_shard(path: Path, ids: list[int]) -> None:
    """An llm.c token shard: a header of int32, then uint16 ids."""
    header = array.array("i", [SHARD_MAGIC, SHARD_VERSION, len(ids)])
    header.extend([0] * (SHARD_HEADER_INTS - len(header)))
    path.write_bytes(header.tobytes() + array.array("H", ids).tobytes())


def write_random_data(directory: Path, preset: Preset) -> Path:
    """Random bytes for a byte vocabulary, else a shard of random ids; in both cases more than a
    run reads."""
    count = 4 * preset.batch * preset.seq_len * (preset.warmup + preset.steps)
    if preset.vocab_size == BYTE_VOCABULARY:
        path = directory / "data.txt"
        path.write_bytes(bytes(random_ids(256, count)))
    else:
        path = directory / "data.bin"
        write_shard(path, random_ids(preset.vocab_size, count))
    return path


def read_data(path: Path):
    """All token ids of a shard (.bin) or of a file of bytes, as a tensor."""
    import torch

    content = bytearray(path.read_bytes())
    if path.suffix == ".bin":
        return torch.frombuffer(content, dtype=torch.uint16, offset=4 * SHARD_HEADER_INTS).long()
    return torch.frombuffer(content, dtype=torch.uint8).long()


# --------------------------------------------------------------------------------------- PyTorch
def train_with_pytorch(
    preset: Preset, compiled: bool, dtype: str, threads: int, data: Path
) -> dict:
    """Trains in this process; returns tokens per second of the median step and peak memory."""
    import torch

    from gpt import GPT, GPTConfig, mean_loss

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = GPT(
        GPTConfig(
            n_layer=preset.n_layer,
            n_head=preset.n_head,
            n_embd=preset.n_embd,
            block_size=preset.seq_len,
            vocab_size=preset.vocab_size,
        )
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1]},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )

    def loss_of(tokens, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            return mean_loss(model(tokens), targets)

    if compiled:
        loss_of = torch.compile(loss_of)

    ids = read_data(data)
    starts = torch.randint(len(ids) - preset.seq_len, (preset.warmup + preset.steps, preset.batch))
    batches = ids[starts[..., None] + torch.arange(preset.seq_len + 1)]

    seconds = []
    for batch in batches:
        start = time.perf_counter()
        loss = loss_of(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start)

    return {
        "tokens_per_s": preset.batch * preset.seq_len / statistics.median(seconds[preset.warmup :]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "version": torch.__version__,
    }


def run_pytorch(
    contender: str, name: str, arguments: argparse.Namespace, cores: list[int], data: Path
) -> dict:
    """Trains with PyTorch in a process of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(len(cores)),
        "MKL_NUM_THREADS": str(len(cores)),
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": ",".join(f"{{{core}}}" for core in cores),
        # Large tensors live a step at most. By default each is mapped and unmapped anew, and the
        # system clears its pages each time.
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:"
        "glibc.malloc.hugetlb=1",
    }
    command = [sys.executable, __file__, "--preset", name, "--only", contender]
    command += ["--steps", str(preset_of(name, arguments).steps), "--data", str(data)]
    command += ["--dtype", arguments.dtype]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"bench.py: PyTorch {contender} failed, exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------------------------- gptloom
def train_command(gptloom: Path, flags: dict) -> list[str]:
    """`gptloom train` with these flags."""
    command = [str(gptloom), "train"]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)]
    return command


def run_gptloom(
    name: str,
    arguments: argparse.Namespace,
    dtype: str,
    cores: list[int],
    data: Path,
    scratch: Path,
) -> dict:
    """Trains with gptloom; speed comes from its metrics, the share of the peak from its output and
    peak memory from the system."""
    preset = preset_of(name, arguments)
    out = scratch / "run"
    flags = {
        "data": data,
        "out": out,
        "n-layer": preset.n_layer,
        "n-head": preset.n_head,
        "n-embd": preset.n_embd,
        "block-size": preset.seq_len,
        "vocab-size": preset.vocab_size,
        "batch": preset.batch,
        "micro-batch": preset.batch,
        "seq-len": preset.seq_len,
        "steps": preset.warmup + preset.steps,
        "lr": LEARNING_RATE,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPSILON,
        "weight-decay": WEIGHT_DECAY,
        "clip": CLIP,
        "val-fraction": 0,
        "val-every": 0,
        "sample-every": 0,
        "checkpoint-every": 0,
        "threads": len(cores),
        "dtype": dtype,
    }
    command = train_command(arguments.gptloom, flags)
    if data.suffix != ".bin":
        command.append("--any-bytes")  # random bytes are no text
    log = scratch / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        print(log.read_text(errors="replace"), file=sys.stderr, end="")
        sys.exit(f"bench.py: gptloom failed, exit code {process.returncode}")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["tokens_per_s"] for line in lines[preset.warmup :]]
    shutil.rmtree(out)
    run = {"tokens_per_s": statistics.median(speeds), "peak_mib": usage.ru_maxrss / 1024}
    shares = re.findall(r"(\d+)% of \S+ peak", log.read_text(errors="replace"))
    if shares:
        run["percent_of_peak"] = statistics.median(int(share) for share in shares)
    return run


# ---------------------------------------------------------------------------------------- report
def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third; of one value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def summarise(results: dict[str, list[dict]], rounds: int) -> dict:
    """Prints medians, quartiles and ratios over `results`, one dict a round per contender; returns
    them."""
    speed = {name: [run["tokens_per_s"] for run in runs] for name, runs in results.items()}
    median = {name: statistics.median(speeds) for name, speeds in speed.items()}
    summary = {"median_tokens_per_s": median, "quartiles": {}, "ratios": {}, "peak_mib": {}}
    print(f"\n{'':13} {'tokens/s':>9} {'quartiles':>15} {'peak MiB':>9}   each round")
    for name, runs in results.items():
        first, third = quartiles(speed[name])
        peak = max(run["peak_mib"] for run in runs)
        summary["quartiles"][name], summary["peak_mib"][name] = (first, third), peak
        each = "  ".join(f"{value:.0f}" for value in speed[name])
        between = f"{first:.0f} to {third:.0f}"
        print(f"{name:13} {median[name]:9.0f} {between:>15} {peak:9.0f}   {each}")
    for name in (name for name in results if name != GPTLOOM and GPTLOOM in results):
        each = [speed[GPTLOOM][i] / speed[name][i] for i in range(rounds)]
        ratio = {"of_medians": median[GPTLOOM] / median[name], "each_round": each}
        summary["ratios"][name] = ratio | {"quartiles": quartiles(each)}
        other = f"PyTorch {name}" if name in PYTORCH else name
        print(
            f"gptloom / {other}: {ratio['of_medians']:.3f} of medians; each round "
            + " ".join(f"{ratio:.3f}" for ratio in each)
        )
    shares = [run["percent_of_peak"] for run in results.get(GPTLOOM, []) if "percent_of_peak" in run]
    if shares:
        summary["percent_of_peak"] = statistics.median(shares)
        print(f"gptloom: {summary['percent_of_peak']:.0f}% of peak")
    return summary


def processor() -> str:
    """What the system calls the processor, and what it can multiply with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    has = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    family = f"family {fields['cpu family']}, model {fields['model']}" if "model" in fields else ""
    return f"{fields.get('model name', platform.machine())} ({'; '.join([family, *has])})"


def write_report(arguments: argparse.Namespace, cores: list[int], all_of: dict) -> None:
    """A page of Markdown for all presets that ran."""
    version = subprocess.run(
        [str(arguments.gptloom), "--version"], stdout=subprocess.PIPE, text=True, check=True
    )
    torch = next(
        (run["version"] for _, results, _ in all_of.values() for runs in results.values()
         for run in runs if "version" in run), "not run",
    )
    shown = shlex.join(["dev/torch/bench.py", *sys.argv[1:]])
    lines = [
        f"# Training on a CPU beside PyTorch, in {arguments.dtype}",
        "",
        f"`{shown}`, {datetime.date.today()}, on {len(cores)} cores of {processor()}. PyTorch {torch}; "
        "gptloom:",
        "",
        *(f"    {line}" for line in version.stdout.splitlines()),
        "",
        f"Medians over {arguments.rounds} rounds in turns, quartiles in brackets; a round's speed is that of "
        "its median step.",
        "",
        "| preset | model, batch | tokens/s: eager | compiled | gptloom | of peak | gptloom / the better "
        "PyTorch |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (preset, results, summary) in all_of.items():
        cells = []
        for contender in (*PYTORCH, GPTLOOM):
            if contender not in results:
                cells.append("")
                continue
            first, third = summary["quartiles"][contender]
            median = summary["median_tokens_per_s"][contender]
            cells.append(f"{median:,.0f} [{first:,.0f}, {third:,.0f}]")
        better = min(
            (summary["ratios"][c] for c in PYTORCH if c in summary["ratios"]),
            key=lambda ratio: ratio["of_medians"], default=None,
        )
        ratio = "" if better is None else (
            f"{better['of_medians']:.2f} [{better['quartiles'][0]:.2f}, {better['quartiles'][1]:.2f}]"
        )
        share = f"{summary['percent_of_peak']:.0f}%" if "percent_of_peak" in summary else ""
        model = f"{preset.n_layer} layers, {preset.n_embd} channels, {preset.batch} x {preset.seq_len}"
        lines.append(f"| {name} | {model} | {' | '.join(cells)} | {share} | {ratio} |")
    arguments.report.write_text("\n".join(lines) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        nargs="+",
        default=["mini"],
        help="models and batches: %(choices)s (default: mini)",
    )
    parser.add_argument("--steps", type=int, help="timed steps in a round (default: the preset's)")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="(default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="cores to use (default: all that are allowed)")
    parser.add_argument(
        "--data", type=Path, help="text, or for gpt2 a .bin shard (default: random tokens)"
    )
    parser.add_argument(
        "--gptloom",
        type=Path,
        default=ROOT / "build" / "gptloom",
        help="the program (default: %(default)s)",
    )
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--skip-gptloom", action="store_true", help="measure PyTorch alone")
    parser.add_argument("--json", type=Path, help="write all numbers to this file too")
    parser.add_argument("--report", type=Path, help="write a page of Markdown to this file too")
    parser.add_argument(
        "--only",
        choices=PYTORCH,
        help="train with this one, here and now, and print its numbers as JSON (needs --data)",
    )
    arguments = parser.parse_args()
    if arguments.only and not arguments.data:
        parser.error("--only needs --data")
    if arguments.report and arguments.skip_gptloom:
        parser.error("--report is about gptloom: leave out --skip-gptloom")
    if arguments.data and len({PRESETS[name].vocab_size for name in arguments.preset}) > 1:
        parser.error("--data goes with presets of one vocabulary")
    if not arguments.only and not arguments.skip_gptloom and not arguments.gptloom.exists():
        parser.error(f"{arguments.gptloom} is not there: run make, or give --skip-gptloom")
    return arguments


def preset_of(name: str, arguments: argparse.Namespace) -> Preset:
    """The preset of this name, with --steps where given."""
    preset = PRESETS[name]
    return replace(preset, steps=arguments.steps) if arguments.steps else preset


def compare(
    name: str, arguments: argparse.Namespace, contenders: list[str], cores: list[int]
) -> dict[str, list[dict]]:
    """Runs all contenders in turns; returns a list of their rounds for each."""
    results = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory(prefix="gptloom-bench-") as directory:
        scratch = Path(directory)
        data = arguments.data or write_random_data(scratch, preset_of(name, arguments))
        for turn in range(arguments.rounds):
            first = turn % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                if contender in (GPTLOOM, GPTLOOM_FP32):
                    dtype = "fp32" if contender == GPTLOOM_FP32 else arguments.dtype
                    run = run_gptloom(name, arguments, dtype, cores, data, scratch)
                else:
                    run = run_pytorch(contender, name, arguments, cores, data)
                results[contender].append(run)
                speed = run["tokens_per_s"]
                print(f"{name}, round {turn + 1}: {contender:13} {speed:9.0f} tokens/s", flush=True)
    return results


def main() -> None:
    arguments = parse_arguments()
    allowed = sorted(os.sched_getaffinity(0))
    cores = allowed[: arguments.threads or len(allowed)]
    if arguments.only:
        preset = preset_of(arguments.preset[0], arguments)
        compiled = arguments.only == "compiled"
        run = train_with_pytorch(preset, compiled, arguments.dtype, len(cores), arguments.data)
        print(json.dumps(run))
        return

    os.sched_setaffinity(0, cores)
    contenders = ["eager"]
    if not arguments.skip_compile:
        contenders.append("compiled")
    if not arguments.skip_gptloom:
        contenders.append(GPTLOOM)
        if arguments.dtype != "fp32":
            contenders.append(GPTLOOM_FP32)
    all_of = {}
    for name in arguments.preset:
        results = compare(name, arguments, contenders, cores)
        all_of[name] = preset_of(name, arguments), results, summarise(results, arguments.rounds)
        if arguments.report and GPTLOOM in contenders:
            write_report(arguments, cores, all_of)
    if arguments.json:
        presets = [
            {"name": name} | asdict(preset) | {"runs": results} | summary
            for name, (preset, results, summary) in all_of.items()
        ]
        everything = {"dtype": arguments.dtype, "cores": cores, "presets": presets}
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
