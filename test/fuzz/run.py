#!/usr/bin/env python3
"""Runs libFuzzer on each target, several at a time, and adds up what came of it.

    test/fuzz/run.py --program build/fuzz/fuzzer [--seconds N | --runs N] [--jobs N] [TARGET...]
    test/fuzz/run.py --check clang++

Inputs that reach something new are kept beside the program; one that breaks something goes to corpus/TARGET here, and from
then on fails in `make test` until it is mended. The status is 1 if anything was found. --check says whether the compiler has
what is needed, and how to get it.
"""

import argparse
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def check(compiler):
    """Whether the compiler links programs with libFuzzer and OpenMP."""
    command = [*compiler.split(), "-x", "c++", "-fsanitize=fuzzer,address", "-fopenmp", "-", "-o", "/dev/null"]
    source = "#include <omp.h>\n#include <stdint.h>\n#include <stddef.h>\n"
    source += 'extern "C" int LLVMFuzzerTestOneInput(const uint8_t *, size_t) { return 0; }\n'
    try:
        if subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0:
            return 0
        version = re.search(r"version (\d+)", subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True).stdout)
    except OSError:
        version = None
    runtime = f"libclang-rt-{version[1]}-dev libomp-{version[1]}-dev" if version else "clang libclang-rt-dev libomp-dev"
    print(f"fuzz: {compiler} with libFuzzer and OpenMP is not here. On Debian and Ubuntu:\n    apt-get install {runtime}", file=sys.stderr)
    return 2


def fuzz(program, target, longest, arguments):
    """Fuzzes a target; returns inputs, seconds, and what was found: paths of inputs, or words."""
    found_before = glob.glob(f"{HERE}/corpus/{target}/*-*")
    kept = os.path.join(os.path.dirname(program), "corpus", target)
    seeds = os.path.join(HERE, "corpus", target)
    os.makedirs(kept, exist_ok=True)
    os.makedirs(seeds, exist_ok=True)
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gptloom-fuzz-", dir=shared) as folder:
        command = [program, f"-artifact_prefix={seeds}/", "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4096"]
        command += [f"-max_len={arguments.longest or longest}", "-detect_leaks=1", "-use_value_profile=0"]
        command += [f"-runs={arguments.runs}"] if arguments.runs else []
        command += [f"-max_total_time={arguments.seconds}"] if arguments.seconds else []
        dictionary = os.path.join(HERE, "dictionary", target)
        command += [f"-dict={dictionary}"] if os.path.exists(dictionary) else []
        environment = {**os.environ, "LOOM_FUZZ": target, "LOOM_FUZZ_FOLDER": folder, "OMP_NUM_THREADS": "1"}
        # Where memory was got and given back is not told: that takes most of the time. A crash that is run again tells it.
        # Freed memory stays out of use for about an input, in what the processor's cache holds.
        asan = "malloc_context_size=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64"
        environment.setdefault("ASAN_OPTIONS", asan)
        ended = subprocess.run([*command, kept, seeds], env=environment, capture_output=True)
    log = ended.stderr.decode(errors="replace")
    with open(f"{kept}.log", "w", encoding="utf-8") as file:
        file.write(log)
    inputs = re.search(r"number_of_executed_units: (\d+)", log) or re.search(r"#(\d+)\s+\w+ +cov", log)
    covered = re.findall(r" cov: (\d+)", log)
    found = sorted(set(glob.glob(f"{HERE}/corpus/{target}/*-*")) - set(found_before))
    if ended.returncode != 0 and not found:
        found = [f"status {ended.returncode}: {log.strip()[-400:]}"]
    return int(inputs[1]) if inputs else 0, time.monotonic() - begin, covered[-1] if covered else "?", found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="COMPILER")
    parser.add_argument("--program", default="build/fuzz/fuzzer")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--longest", type=int, default=0, help="bytes of an input, instead of the target's own")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    program = os.path.abspath(arguments.program)
    names = {key: value for key, value in os.environ.items() if not key.startswith("LOOM_FUZZ")}
    listed = subprocess.run([program], env=names, capture_output=True, text=True, check=True).stdout.splitlines()
    longest = dict(line.split() for line in listed)
    targets = arguments.targets or list(longest)
    unknown = [target for target in targets if target not in longest]
    if unknown:
        parser.error(f"{unknown[0]}: is none of {', '.join(longest)}")
    print(f"{'target':14} {'inputs':>12} {'seconds':>8} {'a second':>9} {'edges':>7} {'findings':>9}")
    total, findings = 0, 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        running = {target: pool.submit(fuzz, program, target, longest[target], arguments) for target in targets}
        for target, future in running.items():
            inputs, seconds, covered, found = future.result()
            print(f"{target:14} {inputs:12,} {seconds:8.0f} {inputs / seconds:9,.0f} {covered:>7} {len(found):9}", flush=True)
            for what in found:
                print(f"    {os.path.relpath(what) if os.path.exists(what) else what}")
            total, findings = total + inputs, findings + len(found)
    print(f"\n{total:,} inputs, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
