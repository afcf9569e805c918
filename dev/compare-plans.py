#!/usr/bin/env python3
"""The memory that two builds of the program plan, side by side: of models, policies of recomputation, dtypes and settings.

    dev/compare-plans.py BEFORE AFTER [--report FILE]

BEFORE and AFTER are programs, as build/gptloom of two commits. Nothing is trained. The table goes to the terminal, or to
FILE; the exit status is 1 where AFTER plans more than BEFORE for any of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

POLICIES = ("none", "act", "norm", "block-attn", "block", "every:2", "every:3", "sqrt")
MIB = 1 << 20
PLACE = ["--on", "a100", "--no-measure"]

# Name, arguments beside the model: what is planned with every policy.
CASES = [
    ("mini", []),
    ("gpt2", []),
    ("gpt2", ["--dtype", "fp32"]),
    ("gpt2", ["--logits-rows", "1000000"]),
    ("gpt2", ["--offload", "activations"]),
    ("gpt2", ["--seq-len", "256", "--micro-batch", "1"]),
    ("gpt2-medium", ["--ranks", "4", "--zero", "2", "--batch", "32"]),
    ("gpt2-xl", ["--micro-batch", "1", "--dtype", "fp32"]),
    ("gpt2-xl", ["--ranks", "8", "--zero", "3", "--batch", "32"]),
    ("gpt3-13b", ["--micro-batch", "1"]),
]


def plan(program: Path, model: str, arguments: list[str], policy: str) -> int | None:
    """Bytes; None where the program refuses it."""
    given = dict(zip(arguments[::2], arguments[1::2]))
    command = [str(program), "plan", model, "--recompute", policy, *PLACE, "--json", "-", *arguments]
    for option, value in (("--batch", "8"), ("--micro-batch", "4")):
        if option not in given:
            command += [option, value]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        print(f"{' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout)["policies"][0]["bytes"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    lines = ["| model | settings | policy | before, MiB | after, MiB | after / before |", "|---|---|---|---|---|---|"]
    larger = 0
    for model, arguments in CASES:
        for policy in POLICIES:
            was = plan(options.before, model, arguments, policy)
            now = plan(options.after, model, arguments, policy)
            if was is None or now is None:
                continue
            larger += now > was
            lines.append(
                f"| {model} | {' '.join(arguments)} | {policy} | {was / MIB:.1f} | {now / MIB:.1f} | {now / was:.3f} |"
            )
    text = "\n".join(lines) + "\n"
    if options.report:
        options.report.write_text(text)
    else:
        print(text, end="")
    return 1 if larger else 0


if __name__ == "__main__":
    sys.exit(main())
