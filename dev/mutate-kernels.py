#!/usr/bin/env python3
"""Breaks kernels on purpose, one line at a time, and looks whether the tests see it.

    dev/mutate-kernels.py [--build BUILD] [WORD...]     mutations whose file, op or description has all the words

Each mutation of dev/mutations.py is compiled as the emulated build compiles its file, in a folder of its own, linked with
all other objects of that build, and `gptloom parity` runs the op's cases on the emulated GPU until the first failure: with
threads running in order, then reversed, then at random, until one of them sees it. A table tells what saw it; before,
the same cases must hold in the program as it is. Ends with 1 if a mutation survives, 2 if one could not be tried, as when
the kernel has changed and has no such text any more.
"""

import argparse
import concurrent.futures
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev"))

from mutations import MUTATIONS  # noqa: E402

SCHEDULES = ("order", "reverse", "random:1")
RUN_LIMIT = 120  # seconds; a kernel that hangs has been seen


class Broken(Exception):
    """A mutation that could not be tried."""


def commands_of(target: str, changed: str, build: str) -> list:
    """What make would do for a target if a file had changed, as lists of words."""
    make = ["make", "-n", "--no-print-directory", "V=1", f"BUILD={build}", "-W", changed, target]
    done = subprocess.run(make, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Broken(f"make -n {target}: {done.stderr.strip()}")
    return [shlex.split(line) for line in done.stdout.splitlines() if line.strip()]


def command_making(output: str, changed: str, build: str) -> list:
    """The command that writes `output` after -o."""
    for words in commands_of(output, changed, build):
        if "-o" in words and words[words.index("-o") + 1] == output:
            return words
    raise Broken(f"make does not say how {output} is made")


def call(words: list, what: str) -> None:
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise Broken(f"{what}: {done.stdout.strip()[-2000:]}")


def mutated_text(mutation) -> str:
    text = (ROOT / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise Broken(f"{mutation.file} has {count} times, not once: {mutation.old!r}")
    return text.replace(mutation.old, mutation.new)


def object_of(source: str, build: str) -> str:
    stem = source.rsplit(".", 1)[0]
    return f"{build}/obj/emulated/{stem}.o" if source.endswith(".cu") else f"{build}/obj/{stem}.o"


def compile_mutant(mutation, folder: Path, build: str) -> Path:
    """Compiles the source with the mutated file, which lies in a copy of the tree's top that is looked into first."""
    source = mutation.compiled or mutation.file
    place = folder / mutation.file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(mutated_text(mutation))
    normal, mutant = object_of(source, build), folder / "mutant.o"
    words = [
        word
        for word in command_making(normal, source, build)
        if word not in ("-MMD", "-MP", "-Werror")
    ]
    words[words.index("-o") + 1] = str(mutant)
    if source == mutation.file:
        words[words.index(source)] = str(place)
    call(words[:1] + [f"-I{folder}"] + words[1:], "compiling")
    return mutant


def link_mutant(mutant: Path, folder: Path, build: str) -> Path:
    """Links the program; of what the library defines too, as part of a group of kernels, the mutant's comes first."""
    program = folder / "gptloom"
    words = command_making(f"{build}/emulated/gptloom", f"{build}/emulated/libgptloom.a", build)
    at = words.index("-o") + 1
    words[at : at + 1] = [str(program), str(mutant), "-Wl,--allow-multiple-definition"]
    call(words, "linking")
    return program


def parity(program: Path, op: str, dtype: str, schedule: str):
    """What the program finds wrong with the op in this schedule; None if it says that all is well."""
    command = [str(program), "parity", "--device", "cuda", "--op", op, "--dtype", dtype]
    process = subprocess.Popen(
        command + ["--first-failure", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ
        | {
            "LOOM_EMULATION_SCHEDULE": schedule,
            "LOOM_EMULATION_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=RUN_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "hangs"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return signal.Signals(-process.returncode).name
    failure = re.search(r"FAILED\n\s*(.*)", out)
    return failure.group(1) if failure else (out.strip().splitlines() or ["it printed nothing"])[-1]


def try_mutation(number: int, mutation, build: str):
    """Returns (schedule that saw it, what it saw), (None, "") if none did; raises Broken."""
    folder = ROOT / build / "mutants" / str(number)
    mutant = compile_mutant(mutation, folder, build)
    program = link_mutant(mutant, folder, build)
    try:
        for schedule in SCHEDULES:
            seen = parity(program, mutation.op, mutation.dtype, schedule)
            if seen:
                return schedule, seen
        return None, ""
    finally:
        program.unlink()
        mutant.unlink()


def check_unbroken(pool, chosen: list, build: str) -> list:
    """Runs the cases of all mutations on the program as it is; returns what is wrong, in lines."""
    program = ROOT / build / "emulated/gptloom"
    cases = sorted({(mutation.op, mutation.dtype) for _, mutation in chosen})
    found = pool.map(lambda case: parity(program, *case, SCHEDULES[0]), cases)
    return [f"{op} {dtype}: {wrong}" for (op, dtype), wrong in zip(cases, found) if wrong]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--build", default="build", help="build folder, from the project's root (default: build)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="mutations at a time (default: processors)"
    )
    parser.add_argument("words", nargs="*", metavar="WORD")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    begin = time.time()
    chosen = [
        (number, mutation)
        for number, mutation in enumerate(MUTATIONS)
        if all(
            any(word in text for text in (mutation.file, mutation.op, mutation.what))
            for word in arguments.words
        )
    ]
    subprocess.run(
        [
            "make",
            "--no-print-directory",
            f"BUILD={arguments.build}",
            f"{arguments.build}/emulated/gptloom",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    survived, broken = [], []
    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        wrong = check_unbroken(pool, chosen, arguments.build)
        if wrong:
            print("the program as it is does not hold its cases:", *wrong, sep="\n    ")
            return 2
        print(f"{'file':38} {'mutation':34} {'op':22} seen", flush=True)
        tries = [
            pool.submit(try_mutation, number, mutation, arguments.build)
            for number, mutation in chosen
        ]
        for (number, mutation), trying in zip(chosen, tries):
            line = f"{mutation.file:38} {mutation.what:34} {mutation.op:22}"
            try:
                schedule, seen = trying.result()
            except Broken as failed:
                broken.append(mutation)
                print(f"{line} COULD NOT BE TRIED: {failed}", flush=True)
                continue
            if not seen:
                survived.append(mutation)
            print(f"{line} {schedule + ': ' + seen[:110] if seen else 'SURVIVES'}", flush=True)
    seen = len(chosen) - len(survived) - len(broken)
    print(
        f"\n{seen} of {len(chosen)} mutations seen, {len(survived)} survive, {len(broken)} could not be tried; "
        f"{time.time() - begin:.0f} s"
    )
    return 1 if survived else 2 if broken or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
