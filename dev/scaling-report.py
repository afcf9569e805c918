#!/usr/bin/env python3
"""Training on several ranks: measured on this machine's CPU, and predicted for many GPUs.

    dev/scaling-report.py [--model gpt2] [--rounds 5] [--out dev/reports/DATE-scaling.md]

Measured: 1 rank, 2 and 4 at each ZeRO stage, and with --deterministic-reduce at two of them, take turns at training
the same model on the same tokens in the same micro-batches, with a thread each; a round's speed is the median of its
steps but the first. There is no report where losses of two that reduce deterministically differ in a bit, or where
ranks hand other numbers of bytes to the communicator than the simulation says.

Predicted: predict_scaling.py. Its simulation is held against what was measured here, with the times of a step's parts
and a bandwidth that are measured too.

Writes the Markdown and, beside it, all figures as JSON.
"""

import argparse
import array
import dataclasses
import datetime
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from predict_scaling import STAGES, add_flags, case_of, predict, predicted_lines, run, table
from simulate_step import Case, Links, simulate

ROOT = Path(__file__).resolve().parents[1]
SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256
MIB = 1 << 20
FEW_TOKENS = 8  # of a sequence, where a step is to be communication and little else


@dataclasses.dataclass(frozen=True)
class Contender:
    ranks: int
    zero: int
    deterministic: bool = False

    def __str__(self) -> str:
        return f"{self.ranks} rank(s), stage {self.zero}{', deterministic' if self.deterministic else ''}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of a step, over all ranks, and of a rank at a time."""

    sequences: int
    micro_batch: int
    seq_len: int

    def flags(self) -> list:
        return ["--batch", self.sequences, "--micro-batch", self.micro_batch, "--seq-len", self.seq_len]


# ------------------------------------------------------------------------------------------------------------ measuring


def write_shard(path: Path, vocabulary: int, count: int) -> None:
    """An llm.c token shard of random ids, the same every time."""
    generator = random.Random(1)
    header = array.array("i", [SHARD_MAGIC, SHARD_VERSION, count])
    header.extend([0] * (SHARD_HEADER_INTS - len(header)))
    ids = array.array("H", (generator.randrange(vocabulary) for _ in range(count)))
    path.write_bytes(header.tobytes() + ids.tobytes())


def shape(options) -> list:
    """The model, in flags."""
    if options.model:
        return ["--model", options.model]
    flags = ["--n-layer", options.n_layer, "--n-head", options.n_head, "--n-embd", options.n_embd]
    return [*flags, "--block-size", options.seq_len, "--vocab-size", options.vocab_size]


def train(options, contender: Contender, batch: Batch, data: Path) -> dict:
    """A short run: what its metrics say of each step but the first, all losses, and a rank's memory."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [options.program, "train", "--quiet", "--data", data, "--val-fraction", 0, "--sample-every", 0]
        command += ["--out", out, *shape(options), *batch.flags(), "--steps", options.steps, "--zero", contender.zero]
        command += ["--device", "cpu", "--threads", 1]
        command += ["--ranks", contender.ranks] if contender.ranks > 1 else []
        command += ["--deterministic-reduce"] if contender.deterministic else []
        run(command)
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        plan = json.loads((out / "plan.json").read_text())
    series = {name: [step.get(name, 0) for step in steps[1:]] for name in ("ms", "ms_waited", "comm_bytes")}
    series["ms_spread"] = [step.get("ms_spread", 0) for step in steps[2:]]  # each is of the step before
    return {**series, "loss": [step["loss"] for step in steps], "memory": plan["bytes"]["all"]}


def plan_command(options, contender: Contender, batch: Batch) -> list:
    command = [options.program, "plan", *shape(options), *batch.flags(), "--recompute", "none", "--on", "cpu"]
    return [*command, "--threads", 1, "--ranks", contender.ranks, "--zero", contender.zero, "--json", "-"]


def measure_parts(options, batch: Batch, ranks: int) -> dict:
    """Seconds of a step's parts, as the mean of what as many processes measure as there are ranks, at once and each on
    a processor of its own: ranks, too, compute while others do."""
    processors = sorted(os.sched_getaffinity(0))
    alone = Batch(batch.micro_batch, batch.micro_batch, batch.seq_len)
    command = [str(word) for word in plan_command(options, Contender(1, 0), alone)]
    started = []
    for processor in processors[:ranks]:
        bind = functools.partial(os.sched_setaffinity, 0, {processor})
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=bind))
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{' '.join(command)}: see above")
    parts = [json.loads(answer)["part_seconds"] for answer in answers]
    return {name: statistics.mean(part[name] for part in parts) for name in parts[0]}


def middle_ms(runs: list[dict]) -> float:
    """Of the rounds' runs, each by the median of its steps."""
    return statistics.median(statistics.median(run["ms"]) for run in runs)


def contenders(counts: list[int]) -> list[Contender]:
    """In their order in a round: one that is deterministic follows the one that it is compared with. One rank has nothing
    to shard, and no stages."""
    found = []
    for ranks in counts:
        for zero in STAGES if ranks > 1 else [0]:
            found.append(Contender(ranks, zero))
            found += [Contender(ranks, zero, True)] if zero in (0, 1) else []
    return found


class Measured:
    """All contenders' runs, round by round. `checked` is how many ranks can have a processor each, 0 if no several can:
    their steps are predicted too, from parts and from runs on `few` tokens, which are measured for it."""

    def __init__(self, options):
        self.options = options
        self.processors = len(os.sched_getaffinity(0))
        self.checked = max((ranks for ranks in options.ranks if 1 < ranks <= self.processors), default=0)
        self.batch = Batch(options.batch, options.micro_batch, options.seq_len)
        self.few = Batch(self.checked, 1, min(FEW_TOKENS, options.seq_len))
        self.runs: dict[Contender, list[dict]] = {contender: [] for contender in contenders(options.ranks)}
        self.few_runs: dict[int, list[dict]] = {zero: [] for zero in (0, 1) if self.checked}  # by stage
        self.parts: list[dict] = []
        self.few_parts: list[dict] = []
        with tempfile.TemporaryDirectory() as directory:
            shard = Path(directory) / "tokens.bin"
            write_shard(shard, options.vocab_size, options.batch * options.seq_len * (options.steps + 1) + 1)
            for number in range(options.rounds):
                self.add_round(f"round {number + 1}", shard)

    def add_round(self, name: str, shard: Path) -> None:
        for contender, runs in self.runs.items():
            runs.append(train(self.options, contender, self.batch, shard))
            print(f"{name}: {contender}: {middle_ms(runs[-1:]):.1f} ms a step", flush=True)
        for zero, runs in self.few_runs.items():
            runs.append(train(self.options, Contender(self.checked, zero), self.few, shard))
            print(f"{name}: {self.checked} ranks, stage {zero}, few tokens: {middle_ms(runs[-1:]):.1f} ms", flush=True)
        if self.checked:
            self.parts.append(measure_parts(self.options, self.batch, self.checked))
            self.few_parts.append(measure_parts(self.options, self.few, self.checked))

    def speeds(self, contender: Contender, base: Contender) -> list[float]:
        """How many times as fast as another one, each round."""
        pairs = zip(self.runs[contender], self.runs[base])
        return [statistics.median(other["ms"]) / statistics.median(own["ms"]) for own, other in pairs]


def case_here(options, contender: Contender, batch: Batch, parts: dict, links: Links) -> Case:
    """On a CPU communicating takes the processor that computes."""
    plan = json.loads(run([*plan_command(options, contender, batch), "--no-measure"]))
    own = batch.sequences // contender.ranks
    fixed = {"deterministic": contender.deterministic, "steals": 1}
    return case_of(plan, parts, own // batch.micro_batch, own, links, **fixed)


def traffic_of(m: Measured) -> dict[Contender, dict]:
    """What each contender communicates, by the simulation; ends the report where what was measured is otherwise."""
    nothing = {"ends": 0.0, "forward_block": 0.0, "backward_block": 0.0, "update_element": 0.0}
    losses = {tuple(run["loss"]) for contender, runs in m.runs.items() if contender.deterministic for run in runs}
    if len(losses) > 1:
        sys.exit("losses with --deterministic-reduce are not the same for all ranks, stages and rounds")
    traffic = {}
    for contender, runs in m.runs.items():
        traffic[contender] = simulate(case_here(m.options, contender, m.batch, nothing, Links(near=1.0)))
        handed = {int(bytes_) for run in runs for bytes_ in run["comm_bytes"]}
        if handed != {traffic[contender]["handed"]}:
            sys.exit(f"{contender}: handed {handed} bytes to the communicator, not {traffic[contender]['handed']}")
    return traffic


# ------------------------------------------------------------------------------------------------------------- measured


def measured_rows(m: Measured) -> list[dict]:
    rows = []
    traffic = traffic_of(m)
    for contender in sorted(m.runs, key=lambda c: (c.ranks, c.deterministic, c.zero)):
        runs = m.runs[contender]
        ratios = m.speeds(contender, Contender(1, 0))
        row = dataclasses.asdict(contender) | {
            "ms": middle_ms(runs),
            "tokens_per_s": 1e3 * m.batch.sequences * m.batch.seq_len / middle_ms(runs),
            "ratio": statistics.median(ratios),
            "ratio_each_round": ratios,
            "ms_waited": statistics.median(statistics.median(run["ms_waited"]) for run in runs),
            "ms_spread": statistics.median(statistics.median(run["ms_spread"]) for run in runs),
            "handed_bytes": traffic[contender]["handed"],
            "wire_bytes": traffic[contender]["wire"],
            "memory_bytes": runs[0]["memory"],
        }
        if contender.deterministic:
            times = m.speeds(Contender(contender.ranks, contender.zero), contender)
            row |= {"cost": statistics.median(times), "cost_each_round": times}
        rows.append(row)
    return rows


def with_range(middle: float, values: list[float]) -> str:
    return f"{middle:.2f} ({min(values):.2f} .. {max(values):.2f})"


def measured_table(rows: list[dict]) -> list[str]:
    header = ["ranks", "stage", "deterministic", "tokens/s", "of one rank", "ms a step", "ms waited", "ms spread"]
    cells = []
    for row in rows:
        cell = [row["ranks"], row["zero"], "yes" if row["deterministic"] else "", f"{row['tokens_per_s']:.0f}"]
        cell += [with_range(row["ratio"], row["ratio_each_round"]), f"{row['ms']:.1f}"]
        several = [f"{row['ms_waited']:.1f}", f"{row['ms_spread']:.1f}"]
        several += [f"{row['handed_bytes'] / MIB:.1f}", f"{row['wire_bytes'] / MIB:.1f}"]
        cells.append([*cell, *(several if row["ranks"] > 1 else [""] * 4), f"{row['memory_bytes'] / MIB:.1f}"])
    return table([*header, "handed, MiB", "sent, MiB", "memory, MiB"], cells)


def cost_table(rows: list[dict]) -> list[str]:
    deterministic = [row for row in rows if row["deterministic"]]
    cells = [[row["ranks"], row["zero"], with_range(row["cost"], row["cost_each_round"])] for row in deterministic]
    return table(["ranks", "stage", "time of a step"], cells)


def who_has_a_processor(m: Measured) -> str:
    own = [str(ranks) for ranks in m.options.ranks if ranks <= m.processors]
    sharing = [str(ranks) for ranks in m.options.ranks if ranks > m.processors]
    text = f"With {' and '.join(own)} of them each has a processor"
    if sharing:
        text += (
            f"; {' and '.join(sharing)} share {m.processors} processors, and are to be no faster than "
            f"{m.processors}: they show what more ranks send and hold"
        )
    return text


def measured_lines(m: Measured, rows: list[dict]) -> list[str]:
    options = m.options
    model = options.model
    if not model:
        model = f"{options.n_layer} layers, {options.n_head} heads, {options.n_embd} channels"
        model += f", vocabulary {options.vocab_size}"
    return [
        "## Measured",
        "",
        f"On {machine(options)}. {model}, fp32; {m.batch.sequences} x {m.batch.seq_len} tokens a step, "
        f"{m.batch.micro_batch} sequences at a time. Ranks are processes on this machine, by MPI, of one thread each. "
        f"{who_has_a_processor(m)}. Rounds, in turns: {options.rounds}; of each run {options.steps - 1} steps are "
        "counted, by their median.",
        "",
        *measured_table(rows),
        "",
        "Tokens/s and milliseconds are medians of all rounds; ratios are of runs of one round, their median and range. "
        "They are not each other's quotients where the machine's own speed changes, as that of a shared one does: the "
        "range tells how much. Of one rank: tokens/s against one rank, which has no stages. Waited: by rank "
        "0's host, for communication, in a step; spread: how far the ranks' own work was apart. Handed: what a rank "
        "gives to the communicator in a step (comm_bytes in its metrics; the simulation says the same, to the byte). "
        "Sent: what it then sends if operations go around a ring of N ranks, 2 (N-1)/N of what is all-reduced, (N-1)/N "
        "of what is reduce-scattered or gathered. Memory: of a rank, as planned, to the byte, without what libraries "
        "take. Losses with "
        "--deterministic-reduce had the same bits for all ranks, stages and rounds.",
        "",
        "--deterministic-reduce, against the same stage and ranks without it, which ran just before:",
        "",
        *cost_table(rows),
        "",
    ]


def machine(options) -> str:
    """What `gptloom devices` says the CPU is."""
    lines = [line.split(maxsplit=1) for line in run([options.program, "devices"]).splitlines()]
    return next((words[1] for words in lines if len(words) == 2 and words[0] == "is"), "a CPU")


# -------------------------------------------------------------------------------------- the simulation, held against it


def middle(parts: list[dict]) -> dict:
    return {name: statistics.median(part[name] for part in parts) for name in parts[0]}


def measured_rates(m: Measured) -> dict[int, float] | None:
    """Bytes/s that a rank sends: at stage 0, in all-reduces, and at stage 1, in all other operations. On next to no
    tokens, all that a step takes beyond its parts is communication; None where that is nothing."""
    rates = {}
    for zero, runs in m.few_runs.items():
        case = case_here(m.options, Contender(m.checked, zero), m.few, middle(m.few_parts), Links(near=1.0))
        result = simulate(case)
        communicating = 1e-3 * middle_ms(runs) - result["computed"]
        if communicating <= 0:
            return None
        rates[zero] = result["wire"] / communicating
    return rates


def check(m: Measured) -> dict | None:
    """Steps as predicted, beside those that were measured; None where the bandwidth could not be."""
    parts, rates = middle(m.parts), measured_rates(m)
    if not rates:
        return None
    others = {kind: rates[1] for kind in ("reduce_scatter", "all_gather", "exchange")}
    rows = []
    for contender in m.runs:
        if contender.ranks != m.checked:
            continue
        case = case_here(m.options, contender, m.batch, parts, Links(near={"all_reduce": rates[0], **others}))
        result = simulate(case)
        row = {"measured_ms": middle_ms(m.runs[contender]), "predicted_ms": 1e3 * result["seconds"]}
        rows.append(dataclasses.asdict(contender) | row | {"computed_ms": 1e3 * result["computed"]})
    return {"part_seconds": parts, "all_reduce_bytes_per_s": rates[0], "other_bytes_per_s": rates[1], "steps": rows}


def check_lines(m: Measured, checked: dict | None) -> list[str]:
    title = f"### The simulation against what was measured: {m.checked} ranks"
    if not checked:
        return [title, "", "Not given: steps on few tokens took no longer than their parts; something else ran.", ""]
    header = ["stage", "deterministic", "computing, ms", "predicted, ms", "measured, ms", "predicted / measured"]
    cells = []
    for row in checked["steps"]:
        cell = [row["zero"], "yes" if row["deterministic"] else "", f"{row['computed_ms']:.1f}"]
        cell += [f"{row['predicted_ms']:.1f}", f"{row['measured_ms']:.1f}"]
        cells.append([*cell, f"{row['predicted_ms'] / row['measured_ms']:.2f}"])
    return [
        title,
        "",
        f"From the parts of a step, which `gptloom plan` measured in {m.checked} processes at once, and from what a "
        f"rank sends a second: {checked['all_reduce_bytes_per_s'] / 1e9:.2f} GB in all-reduces, "
        f"{checked['other_bytes_per_s'] / 1e9:.2f} GB in other operations, measured in steps on {m.few.seq_len} tokens "
        "a rank. A processor both computes and communicates here, so nothing hides behind computing.",
        "",
        *table(header, cells),
        "",
    ]


# -------------------------------------------------------------------------------------------------------------- writing


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "gptloom")
    parser.add_argument("--out", type=Path, help="the Markdown file (default: dev/reports/DATE-scaling.md)")
    parser.add_argument("--only", choices=("measured", "predicted"), help="(default: both)")
    flag = parser.add_argument_group("measured").add_argument
    flag("--model", help="a named model (default: the shape of the next four)")
    flag("--n-layer", type=int, default=6)
    flag("--n-head", type=int, default=6)
    flag("--n-embd", type=int, default=384)
    flag("--vocab-size", type=int, default=4096, help="what tokens are drawn from, of a named model too (default 4096)")
    flag("--seq-len", type=int, default=64)
    flag("--batch", type=int, default=8, help="sequences of a step (default 8)")
    flag("--micro-batch", type=int, default=2, help="sequences that a rank has at a time (default 2)")
    flag("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4])
    flag("--steps", type=int, default=5, help="of each run; the first is not counted (default 5)")
    flag("--rounds", type=int, default=5, help="runs of each, in turns (default 5)")
    add_flags(parser)
    options = parser.parse_args()
    if options.steps < 3:
        parser.error("--steps: the first is not counted, and the spread of the last is not known; take at least 3")
    if 1 not in options.ranks:
        parser.error("--ranks: 1 must be among them, which the others are compared with")
    if any(options.global_batch % gpus for gpus in options.gpus):
        parser.error("--global-batch: each of --gpus must divide it")
    options.planner = options.planner or options.program
    return options


def main() -> None:
    options = read_options()
    date = datetime.date.today().isoformat()
    path = options.out or ROOT / "dev" / "reports" / f"{date}-scaling.md"
    lines = [f"# Scaling over ranks, {date}", "", f"`{' '.join(['dev/scaling-report.py', *sys.argv[1:]])}`", ""]
    figures: dict = {}
    if options.only != "predicted":
        m = Measured(options)
        figures["measured"] = measured_rows(m)
        lines += measured_lines(m, figures["measured"])
        if m.checked:
            figures["check"] = check(m)
            lines += check_lines(m, figures["check"])
    if options.only != "measured":
        figures["predicted"] = predict(options)
        lines += predicted_lines(options, figures["predicted"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(lines), f"\nwritten to {path}")


if __name__ == "__main__":
    main()
