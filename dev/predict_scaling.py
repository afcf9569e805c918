"""Steps on many GPUs that are not here: predicted, not measured (dev/scaling-report.py writes it down).

What a step computes is what `gptloom plan` says of a GPU; when it computes and when it communicates, simulate_step.py;
what ranks are connected by is an input.
"""

import argparse
import dataclasses
import functools
import json
import math
import subprocess
import sys

from simulate_step import Case, Links, Protocol, simulate

GIB = 1 << 30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STAGES = range(4)

# An addition of fp32 gradients moves 12 bytes an element; an update of fp32 weights, with the sum of squares, 32.
ADDITION_OF_UPDATE = 12 / 32

# Communication is said to hide where it makes a step longer by no more than this share of it.
MOST_EXPOSED = 0.05

# Rings as NCCL itself reckons with them, by the constants of its src/graph/tuning.cc: microseconds to begin with, of a
# hop within a node and of one between nodes, and the share of the bandwidth. LL's is that between nodes.
NCCL_RINGS = {"LL": (6.6, 0.6, 2.7, 0.25), "LL128": (14.0, 1.9, 4.0, 0.92), "Simple": (8.4, 3.4, 14.0, 1.0)}


def run(command: list) -> str:
    """What a program prints; its error ends the report."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def table(header: list[str], rows: list[list]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def case_of(plan: dict, parts: dict, micro_batches: int, sequences: int, links: Links, **more) -> Case:
    """What is simulated of a rank: its plan, the seconds of a step's parts, and its share of the batch."""
    return Case(
        ranks=plan["ranks"],
        zero=plan["zero"],
        micro_batches=micro_batches,
        sequences=sequences,
        elements=[bucket["elements"] for bucket in plan["buckets"]],
        squares=sum(bucket["blocks"] for bucket in plan["buckets"]),
        links=links,
        ends=parts["ends"],
        forward=parts["forward_block"],
        backward=parts["backward_block"],
        update=parts["update_element"],
        addition=ADDITION_OF_UPDATE * parts["update_element"],
        gradient_bytes=BYTES[plan["gradient"]],
        weight_bytes=BYTES[plan["dtype"]],
        **more,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument_group("predicted").add_argument
    flag("--planner", help="a gptloom that can plan for a GPU (default: --program)")
    flag("--gpu", default="h100")
    flag("--models", type=lambda text: text.split(","), default=["gpt2", "gpt2-xl"])
    flag("--gpus", type=lambda text: [int(word) for word in text.split(",")], default=[8, 64])
    flag("--context", type=int, default=1024, help="tokens of a sequence (default 1024)")
    flag("--most", type=int, default=32, help="sequences of a micro-batch in the first tables (default 32)")
    flag("--global-batch", type=int, default=512, help="sequences of a step in strong scaling (default 512)")
    flag("--nvlink", type=float, default=360, help="GB/s that a GPU's rings reach within a node (default 360)")
    flag("--network", type=float, default=40, help="GB/s that each GPU's adapter reaches (default 40)")
    flag("--per-node", type=int, default=8, help="GPUs of a node (default 8)")
    flag("--steals", type=float, default=16 / 132, help="of computing's speed, what NCCL takes (default 16/132)")


class Predictor:
    """Steps of named models, with everything kept for backward."""

    def __init__(self, options):
        self.options = options
        rings = (
            Protocol(base * 1e-6, near * 1e-6, far * 1e-6, share) for base, near, far, share in NCCL_RINGS.values()
        )
        self.links = Links(1e9 * options.nvlink, 1e9 * options.network, options.per_node, tuple(rings))
        self.plan = functools.lru_cache(maxsize=None)(self.ask)

    def ask(self, model: str, gpus: int, zero: int, micro_batch: int) -> dict:
        command = [self.options.planner, "plan", model, "--on", self.options.gpu, "--dtype", "bf16"]
        command += ["--batch", gpus * micro_batch, "--micro-batch", micro_batch, "--seq-len", self.options.context]
        command += ["--recompute", "none", "--ranks", gpus, "--zero", zero, "--json", "-"]
        return json.loads(run(command))

    def sizes(self, model: str, gpus: int, zero: int) -> list[int]:
        """Micro-batches that fit: powers of two, in sequences."""
        found = []
        while self.plan(model, gpus, zero, 1 << len(found))["policies"][0]["fits"]:
            found.append(1 << len(found))
        return found

    def step(
        self, model: str, gpus: int, zero: int, micro_batch: int, micro_batches: int = 1, scale: float = 1
    ) -> dict:
        """A step, with `scale` times the bandwidths."""
        plan = self.plan(model, gpus, zero, micro_batch)
        links = dataclasses.replace(self.links, near=scale * self.links.near, far=scale * self.links.far)
        own = micro_batches * micro_batch
        case = case_of(plan, plan["part_seconds"], micro_batches, own, links, steals=self.options.steals)
        result = simulate(case)
        return {
            "model": model,
            "gpus": gpus,
            "zero": zero,
            "micro_batch": micro_batch,
            "micro_batches": micro_batches,
            "memory_bytes": plan["policies"][0]["bytes"],
            "tokens_per_s": gpus * own * self.options.context / result["seconds"],
            "share_exposed": result["exposed"] / result["seconds"],
            **result,
        }

    def weak(self, model: str, micro_batch: int) -> list[dict]:
        """One micro-batch a step on each GPU."""
        steps = [self.step(model, 1, 0, micro_batch)]
        steps += [self.step(model, gpus, zero, micro_batch) for gpus in self.options.gpus for zero in STAGES]
        return with_efficiency(steps)

    def strong(self, model: str, micro_batch: int) -> list[dict]:
        """The same global batch, in micro-batches that a GPU's share of it is made of."""
        steps = []
        for gpus in (1, *self.options.gpus):
            own = self.options.global_batch // gpus
            size = min(micro_batch, own & -own)  # powers of two, both
            steps += [self.step(model, gpus, zero, size, own // size) for zero in (STAGES if gpus > 1 else [0])]
        return with_efficiency(steps)

    def smallest(self, model: str, gpus: int, zero: int) -> dict:
        """The smallest micro-batch from which on communication hides, with one a step; None if it does not with the
        largest that fits, of which the share is given."""
        steps = [self.step(model, gpus, zero, size) for size in self.sizes(model, gpus, zero)]
        hidden = [step["share_exposed"] <= MOST_EXPOSED for step in steps]
        first = next((i for i in range(len(steps)) if all(hidden[i:])), None)
        return {
            "smallest": None if first is None else steps[first]["micro_batch"],
            "largest": steps[-1]["micro_batch"],
            "share_with_largest": steps[-1]["share_exposed"],
        }

    def least_bandwidth(self, model: str, gpus: int, zero: int, micro_batch: int) -> dict:
        """The bandwidth of a ring below which communication does not hide, with one micro-batch a step; None if it does
        not with any, where a share is exposed that only latency makes."""
        low, high = 1e-6, 1e9
        with_any = self.step(model, gpus, zero, micro_batch, scale=high)["share_exposed"]
        if with_any > MOST_EXPOSED:
            return {"bytes_per_s": None, "share_with_any": with_any}
        while high / low > 1.001:
            scale = math.sqrt(low * high)
            if self.step(model, gpus, zero, micro_batch, scale=scale)["share_exposed"] > MOST_EXPOSED:
                low = scale
            else:
                high = scale
        return {"bytes_per_s": high * self.links.ring(gpus), "share_with_any": with_any}


def with_efficiency(steps: list[dict]) -> list[dict]:
    """Tokens/s, of so many times the first one's, which is one GPU's."""
    alone = steps[0]["tokens_per_s"]
    return [{**step, "efficiency": step["tokens_per_s"] / (step["gpus"] * alone)} for step in steps]


def predict(options) -> dict:
    predictor = Predictor(options)
    answer = {"weak": [], "strong": [], "hiding": []}
    for model in options.models:
        # As large as fits on every number of GPUs without sharing anything out: the same at all stages.
        fitting = [predictor.sizes(model, gpus, 0) for gpus in (1, *options.gpus)]
        if not all(fitting):
            sys.exit(f"{model}: does not fit on one {options.gpu} at stage 0")
        micro_batch = min(options.most, *(sizes[-1] for sizes in fitting))
        answer["weak"] += predictor.weak(model, micro_batch)
        answer["strong"] += predictor.strong(model, micro_batch)
        for gpus in options.gpus:
            for zero in STAGES:
                row = {"model": model, "gpus": gpus, "zero": zero, "micro_batch": micro_batch}
                row |= predictor.smallest(model, gpus, zero)
                row |= predictor.least_bandwidth(model, gpus, zero, micro_batch)
                answer["hiding"].append(row)
        print(f"predicted: {model}", flush=True)
    return answer


# -------------------------------------------------------------------------------------------------------- as Markdown


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def steps_table(steps: list[dict]) -> list[str]:
    header = ["model", "GPUs", "stage", "micro-batches", "GiB a GPU", "ms a step", "tokens/s", "of GPUs x one"]
    header += ["communicating, ms", "exposed, ms", "exposed"]
    rows = []
    for step in steps:
        row = [step["model"], step["gpus"], step["zero"] if step["gpus"] > 1 else ""]
        row += [f"{step['micro_batches']} x {step['micro_batch']}", f"{step['memory_bytes'] / GIB:.1f}"]
        row += [f"{1e3 * step['seconds']:.1f}", f"{step['tokens_per_s']:,.0f}", percent(step["efficiency"])]
        row += [f"{1e3 * step['busy']:.1f}", f"{1e3 * step['exposed']:.1f}", percent(step["share_exposed"])]
        rows.append(row)
    return table(header, rows)


def hiding_table(rows: list[dict], context: int) -> list[str]:
    cells = []
    for row in rows:
        tokens = f"none that fits: {percent(row['share_with_largest'])} with {row['largest'] * context}"
        if row["smallest"]:
            tokens = f"{row['smallest'] * context}{' or fewer' if row['smallest'] == 1 else ''}"
        bandwidth = f"{row['bytes_per_s'] / 1e9:.0f}" if row["bytes_per_s"] else "none"
        cell = [row["model"], row["gpus"], row["zero"], tokens, row["micro_batch"] * context, bandwidth]
        cells.append([*cell, percent(row["share_with_any"])])
    header = ["model", "GPUs", "stage", "tokens of a micro-batch", "at tokens", "GB/s of a ring"]
    header += ["exposed with any GB/s"]
    return table(header, cells)


def predicted_lines(options, answer: dict) -> list[str]:
    rings = [
        f"{name} {base} us, {near} and {far} us a hop within a node and between nodes, {share:g} of the bandwidth"
        for name, (base, near, far, share) in NCCL_RINGS.items()
    ]
    return [
        "## Predicted, not measured",
        "",
        f"Nothing below was run. {options.gpu}, bf16 with fp32 master weights and gradients, {options.context} tokens "
        "a sequence, everything kept for backward, ranks started by torchrun. Inputs, none of them measured:",
        "",
        "- computing: `gptloom plan`, by the GPU's data sheet and the shares of its peaks that it assumes;",
        f"- NVLink: {options.nvlink:g} GB/s each way of a GPU, {options.per_node} GPUs a node. 360 are 0.8 of an H100's "
        "data sheet; that collectives reach so much is assumed;",
        f"- network: {options.network:g} GB/s each way of each GPU's own adapter, all of which a node's rings share. "
        "40 are 0.8 of 400 Gb/s;",
        f"- operations: rings, by the fastest of three protocols as NCCL's own model has them (the constants of its "
        f"src/graph/tuning.cc): {'; '.join(rings)}. Trees and NVLink's own reductions, which may be faster, are "
        "left out;",
        f"- while NCCL communicates, computing goes at {percent(1 - options.steals)} of its speed. 87.9 % are left "
        "where 16 of an H100's 132 multiprocessors are taken, which is assumed;",
        "- launching what is in no graph, and ranks that are late, cost nothing.",
        "",
        "Communicating is what a step's operations take by themselves; exposed, what they add to it. GPUs x one: so "
        "many times one GPU's tokens/s; it can be more than 100 % as stages share the update out.",
        "",
        "### Weak scaling (predicted): one micro-batch a step on each GPU",
        "",
        *steps_table(answer["weak"]),
        "",
        f"### Strong scaling (predicted): {options.global_batch} x {options.context} tokens a step",
        "",
        *steps_table(answer["strong"]),
        "",
        "### Where communication no longer hides (predicted)",
        "",
        f"With one micro-batch a step: the smallest, of powers of two of sequences, from which on at most "
        f"{percent(MOST_EXPOSED)} of the step is exposed; and the bandwidth of a ring below which it is more, with "
        "weak scaling's micro-batch. Exposed with any bandwidth is what latency makes: losses, and with stages the sums of "
        "squares, are known to all ranks before the update. In the tables above a ring has "
        f"{options.nvlink:g} GB/s within a node, and between nodes "
        f"{min(options.nvlink, options.network * options.per_node):g}.",
        "",
        *hiding_table(answer["hiding"], options.context),
        "",
    ]
