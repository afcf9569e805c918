"""Checks a checkpoint directory of gptloom with transformers, and gptloom's results with it.

One line is printed for each check; the exit code is 1 if one fails.

  files      transformers loads config.json and model.safetensors: no tensor missing or unexpected
  tokenizer  AutoTokenizer turns text into the ids of its bytes and back (byte-level models)
  logits     transformers' model and dev/torch/gpt.py agree on a text
  loss       their mean loss of the text, and the one gptloom measures as its validation loss
  greedy     `gptloom sample --temperature 0` writes what transformers' greedy generation does

A model that is not of bytes is checked on random token ids, and prompted with ids.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from bench import BYTE_VOCABULARY, random_ids, write_shard
from gpt import GPTConfig, load_checkpoint, mean_loss

ROOT = Path(__file__).resolve().parents[2]
END_OF_TEXT = BYTE_VOCABULARY - 1
GPT2_VOCABULARY = 50257


@dataclass
class Checks:
    """What was found so far."""

    failed: list[str] = field(default_factory=list)

    def add(self, name: str, passed: bool, detail: str) -> None:
        print(f"{'ok  ' if passed else 'FAIL'} {name:10} {detail}", flush=True)
        if not passed:
            self.failed.append(name)


def find_checkpoint(directory: Path) -> Path:
    """A run's latest checkpoint, or the directory itself."""
    latest = directory / "checkpoints" / "latest"
    found = latest if latest.exists() else directory
    if not (found / "model.safetensors").exists():
        sys.exit(f"check_checkpoint.py: {directory} holds no model.safetensors and no checkpoints")
    return found.resolve()


def logit_tolerance(config: GPTConfig, T: int) -> float:
    """How far two fp32 evaluations of the model may lie apart, in parts of the largest logit: 4
    deviations of the roundings along the longest path, in each of the two. test/test_golden.cpp
    has the derivation."""
    C = config.n_embd
    path = config.n_layer * (9 * C + C // config.n_head + 2 * T) + 2 * C
    return math.sqrt(2) * 4 * 2.0**-24 * math.sqrt(path)


def windows_of(ids: list[int], T: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs (id, next id) in windows of T, as (1, T) inputs and targets; the last is shorter."""
    pairs = len(ids) - 1
    row = torch.tensor([ids])
    starts = range(0, pairs, T)
    return [(row[:, i : min(i + T, pairs)], row[:, i + 1 : i + 1 + T]) for i in starts]


@torch.no_grad()
def compare_models(checks: Checks, theirs, ours, ids: list[int]) -> tuple[float, float]:
    """Compares logits of transformers' model and gpt.py's. Returns transformers' mean loss and how
    far that of another fp32 evaluation may lie from it."""
    T = ours.config.block_size
    tolerance = logit_tolerance(ours.config, T)
    error, largest, losses = 0.0, 0.0, {"theirs": 0.0, "ours": 0.0}
    for inputs, targets in windows_of(ids, T):
        a, b = theirs(inputs).logits, ours(inputs)
        error = max(error, float((a - b).abs().max()))
        largest = max(largest, float(a.abs().max()))
        losses["theirs"] += float(mean_loss(a, targets)) * targets.numel()
        losses["ours"] += float(mean_loss(b, targets)) * targets.numel()
    losses = {name: total / (len(ids) - 1) for name, total in losses.items()}
    checks.add(
        "logits",
        error <= tolerance * largest,
        f"transformers and gpt.py differ by {error:.1e} of {largest:.3g} "
        f"({tolerance * largest:.1e} allowed)",
    )
    # The tolerance is 4 deviations of a logit; the mean of many rows' losses stays within one.
    allowed = tolerance * largest / 4
    checks.add(
        "loss",
        abs(losses["theirs"] - losses["ours"]) <= allowed,
        f"transformers {losses['theirs']:.7f}, gpt.py {losses['ours']:.7f} ({allowed:.1e} allowed)",
    )
    return losses["theirs"], allowed


def run(command: list[str]) -> bytes:
    """Standard output of gptloom; its error ends the script."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.stderr.buffer.write(done.stderr)
        sys.exit(f"check_checkpoint.py: exit code {done.returncode} from: {' '.join(command)}")
    return done.stdout


def validation_loss(gptloom: Path, directory: Path, config: GPTConfig, ids: list[int]) -> float:
    """The mean loss gptloom measures: one step with a learning rate of 0, then a validation."""
    with tempfile.TemporaryDirectory(prefix="gptloom-check-") as scratch:
        out = Path(scratch) / "run"
        if config.vocab_size == BYTE_VOCABULARY:
            data = Path(scratch) / "data.txt"
            data.write_bytes(bytes(ids[:-1]))  # the end-of-text is gptloom's to add
        else:
            data = Path(scratch) / "data.bin"
            write_shard(data, ids)
        flags = {
            "data": data,
            "val-data": data,
            "out": out,
            "init": directory,
            "n-layer": config.n_layer,
            "n-head": config.n_head,
            "n-embd": config.n_embd,
            "block-size": config.block_size,
            "vocab-size": config.vocab_size,
            "seq-len": config.block_size,
            "batch": 1,
            "micro-batch": 1,
            "steps": 1,
            "lr": 0,
            "val-every": 1,
            "sample-every": 0,
            "checkpoint-every": 0,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        run([str(gptloom), "train", *words])
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]


def compare_greedy(
    checks: Checks, theirs, gptloom: Path, directory: Path, prompt: str, tokens: int
) -> None:
    """Continues the prompt with both programs, always by the most probable token."""
    config = theirs.config
    of_bytes = config.vocab_size == BYTE_VOCABULARY
    ids = list(prompt.encode()) if of_bytes else [int(word) for word in prompt.split()]
    count = min(tokens, config.n_positions - len(ids))
    end = END_OF_TEXT if of_bytes else min(config.vocab_size, GPT2_VOCABULARY) - 1
    row = torch.tensor([ids])
    expected = theirs.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )[0].tolist()
    if expected[-1] == end:
        expected.pop()
    command = [str(gptloom), "sample", "--from", str(directory), "--prompt", prompt]
    output = run(command + ["--tokens", str(count), "--temperature", "0"])
    written = list(output[:-1]) if of_bytes else [int(word) for word in output.split()]
    same = written == expected
    shown = repr(bytes(expected).decode(errors="replace")) if of_bytes else expected
    if same:
        detail = f"{count} tokens: {shown}"
    else:
        pairs = enumerate(zip(written, expected))
        place = next((i for i, (a, b) in pairs if a != b), min(len(written), len(expected)))
        detail = f"differs at token {place}: gptloom {written[place:]}, transformers {shown}"
    checks.add("greedy", same, detail)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="a checkpoint, or a run (its latest one)")
    parser.add_argument("--gptloom", type=Path, default=ROOT / "build" / "gptloom", help="program")
    parser.add_argument("--prompt", help="what to continue: text, or ids '464 3280'")
    parser.add_argument(
        "--tokens", type=int, default=40, help="to continue by, as the context allows"
    )
    parser.add_argument("--text", type=Path, default=Path(__file__), help="whose loss to compare")
    parser.add_argument("--limit", type=int, default=8192, help="tokens of the text to take")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = Checks()
    directory = find_checkpoint(arguments.directory)
    theirs, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    theirs = theirs.float().eval()
    wrong = {key: sorted(map(str, names)) for key, names in info.items() if names}
    checks.add("files", not wrong, f"{directory}: {wrong or 'all tensors, no others'}")

    if wrong:
        sys.exit(1)

    ours = load_checkpoint(directory)
    if ours.config.vocab_size == BYTE_VOCABULARY:
        content = arguments.text.read_bytes()[: arguments.limit - 1]
        ids = list(content) + [END_OF_TEXT]
        tokenizer = AutoTokenizer.from_pretrained(directory)
        text = "".join(map(chr, range(0x20, 0x250))) + "\n\t naïve 😀 <|endoftext|>"
        wanted = list(text.removesuffix("<|endoftext|>").encode()) + [END_OF_TEXT]
        turned = tokenizer(text).input_ids
        back = tokenizer.decode(turned)
        detail = f"{len(wanted)} bytes to their ids and back"
        checks.add("tokenizer", turned == wanted and back == text, detail)
    else:
        ids = random_ids(ours.config.vocab_size, arguments.limit)

    loss, allowed = compare_models(checks, theirs, ours, ids)
    measured = validation_loss(arguments.gptloom, directory, ours.config, ids)
    detail = f"transformers {loss:.7f}, gptloom {measured:.7f} ({allowed:.1e} allowed)"
    checks.add("loss", abs(loss - measured) <= allowed, detail)

    of_bytes = ours.config.vocab_size == BYTE_VOCABULARY
    prompt = arguments.prompt or ("The " if of_bytes else "1 2 3")
    compare_greedy(checks, theirs, arguments.gptloom, directory, prompt, arguments.tokens)
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
