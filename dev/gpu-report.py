#!/usr/bin/env python3
"""Measures gptloom on this machine's GPU and writes a report, in less than eight minutes.

    dev/gpu-report.py BUILD [--out PATH] [--quick] ...        what `make gpu-report` runs
    dev/gpu-report.py --check                                 whether this machine has what building and running need

Phases: parity of all ops with the oracle, in one process; the benchmark of all ops; 100 steps of GPT-2 124M in bf16 with
gptloom and with PyTorch (dev/torch/train_gpu.py), in turns on the same tokens; with ranks: NCCL with one, two that share a
GPU by MPI where there is Open MPI, and NCCL on 2, 4 .. all GPUs where there are several; and where CUDA's tools are
installed, compute-sanitizer over small cases and Nsight Compute's counters of the hot kernels. Libraries are the toolkit's
and the system's, and after them those of NVIDIA's Python packages. Each phase has a time limit; one that fails or takes too
long is a line of the report with its reason. PATH.json and PATH.md are written (in a folder, if PATH is one, and by default
in dev/reports, they are called DATE-gpu-NAME), the JSON anew after every phase, and the table is printed last.
Needs nothing but Python; PyTorch is compared with where this python3 has it.

Ends with 2 where there is no GPU or --check misses something, with 1 if a phase failed, else with 0.
"""

import argparse
import array
import csv
import datetime
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Dense bf16 matrix rates of GPUs in TFLOP/s, from NVIDIA's data sheets; the first whose words are all in the name.
KNOWN_PEAKS = [
    (("B200",), 2250.0),
    (("GH200",), 989.4),
    (("H200",), 989.4),
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("H100",), 989.4),
    (("A100",), 312.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("A10G",), 70.0),
    (("A40",), 149.7),
    (("RTX 4090",), 165.2),
    (("RTX 5090",), 209.5),
]

# Seconds that a phase may take at most; all of them end with the report's time.
LIMITS = {"parity": 110, "bench": 80, "train": 80, "pytorch": 130, "ranks": 90, "sanitizer": 60, "counters": 50}
ONE_RANKS_RUN = 45  # of those of "ranks": one that hangs leaves time for the others
TIME_TO_END = 3  # for ranks of which another one has ended badly
ANOTHER_ROUND = 1.3  # times what the first one took must be left for a second one

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256


# ---------------------------------------------------------------------------------------------------------- commands
class Failed(Exception):
    """A phase that did not come to its end, in one line; and all that the program said about it."""

    def __init__(self, reason: str, output: str = ""):
        super().__init__(reason)
        self.output = output


class OutOfTime(Failed):
    """A phase that was ended, or not begun, for want of time."""


class LeftOut(Exception):
    """A comparison that this machine does not allow; no failure of ours."""


TROUBLE = (Failed, OSError, ValueError, KeyError)


def is_short_of_memory(failed: Exception) -> bool:
    """Whether gptloom refused a run, or gave it up, because the GPU's memory does not hold it; a kernel's illegal
    access to memory is not that."""
    return any(
        "not enough memory on the GPU" in line or re.match(r"(.*gptloom: )?--memory:", line)
        for line in getattr(failed, "output", "").splitlines()
    )


def lacks_cudnn(failed: Exception) -> bool:
    """Whether gptloom says that it cannot have cuDNN's attention here."""
    return "gptloom: --attention cudnn:" in str(failed)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def run(command: list, limit: float, accepted: tuple = (0,), environment=None) -> subprocess.CompletedProcess:
    """Runs a command in a group of its own, which is ended when the limit is over; raises Failed if it ends badly."""
    if limit < 1:
        raise OutOfTime("no time was left")
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=environment,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise OutOfTime(f"ended after its limit of {limit:.0f} s", out) from None
    if process.returncode not in accepted:
        raise Failed(f"exit code {process.returncode}: {last_line(err or out)}", err or out)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_together(commands: list, limit: float, scratch: Path) -> None:
    """Runs commands, each with its environment, as the ranks of one run. When one ends badly the others have a moment to
    do so too; Failed has the line of the first one. Nothing is left of them."""
    processes, outputs = [], []
    end, reason = time.time() + limit, ""
    try:
        for i, (command, environment) in enumerate(commands):
            outputs.append(scratch / f"rank-{i}")
            with open(outputs[-1], "w") as output:
                processes.append(
                    subprocess.Popen(
                        [str(word) for word in command],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        while any(process.poll() is None for process in processes) and time.time() < end:
            bad = [i for i, process in enumerate(processes) if process.poll()]
            if bad and not reason:
                said = outputs[bad[0]].read_text(errors="replace")
                reason = f"rank {bad[0]}, exit code {processes[bad[0]].returncode}: {last_line(said)}"
                end = min(end, time.time() + TIME_TO_END)
            time.sleep(0.02)
    finally:
        late = [process for process in processes if process.poll() is None]
        for process in late:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    texts = [output.read_text(errors="replace") for output in outputs]
    bad = [i for i, process in enumerate(processes) if process.returncode]
    if bad and not reason and not late:
        reason = f"rank {bad[0]}, exit code {processes[bad[0]].returncode}: {last_line(texts[bad[0]])}"
    if reason:
        raise Failed(reason, "".join(texts))
    if late:
        raise OutOfTime(f"ended after its limit of {limit:.0f} s")


def output_of(command: list) -> str:
    """What a small tool prints, or "" where there is no such tool."""
    try:
        return run(command, 20).stdout.strip()
    except (OSError, Failed):
        return ""


class Clock:
    """What is left of the report's time."""

    def __init__(self, settings):
        self.settings = settings
        self.end = settings.started + 60 * settings.minutes

    def left(self) -> float:
        return self.end - time.time()

    def limit(self, phase: str) -> float:
        return min(getattr(self.settings, phase + "_limit"), self.left())


# ----------------------------------------------------------------------------------------------------------- machine
def smi(fields: str) -> list:
    """Values that nvidia-smi tells, a list per GPU; none where it is missing."""
    text = output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    return [[value.strip() for value in line.split(",")] for line in text.splitlines()]


class MemoryWatch:
    """The largest use of the first GPU's memory while something runs, in MiB above what was in use before; None where
    nvidia-smi does not tell."""

    def __init__(self):
        self.before = self.used()
        self.largest = self.before
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    @staticmethod
    def used():
        rows = smi("memory.used")
        return float(rows[0][0]) if rows and rows[0][0].isdigit() else None

    def watch(self):
        # Seldom: a process that asks the driver disturbs what is being timed.
        while not self.over.wait(2):
            self.largest = max(self.largest, self.used() or 0)

    def __enter__(self):
        if self.before is not None:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.before is not None:
            self.thread.join()

    def peak_mib(self):
        return None if self.before is None else self.largest - self.before


def run_ours(settings, arguments: list, limit: float, accepted: tuple = (0,)) -> subprocess.CompletedProcess:
    """Runs gptloom, as run() does."""
    return run([settings.program, *arguments], limit, accepted, settings.environment)


def find_device(settings) -> str:
    """The device's name and description as gptloom prints them; Failed with gptloom's own line if it has none."""
    command = ["parity", "--device", settings.device, "--op", "fill", "--dtype", "fp32"]
    try:
        first = run_ours(settings, command, 60, (0, 1)).stdout.splitlines()[0]
    except Failed as failed:
        raise Failed(re.sub(r"^exit code \d+: ", "", str(failed))) from None
    return first.rsplit(" against ", 1)[0]


def describe_machine(description: str) -> dict:
    gpus = smi("name,driver_version,memory.total,power.limit,clocks.max.sm")
    release = re.search(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    processor = re.search(r"model name\s*:\s*(.*)", output_of(["cat", "/proc/cpuinfo"]))
    machine = {
        "device": description,
        "gpus": len(gpus),
        "nvcc": release.group(1) if release else None,
        "gcc": output_of(["gcc", "-dumpfullversion"]) or None,
        "python": sys.version.split()[0],
        "processor": processor.group(1) if processor else None,
        "processors": os.cpu_count(),
    }
    if gpus:
        machine |= dict(zip(["gpu", "driver", "memory_mib", "power_limit_w", "clock_mhz"], gpus[0]))
    return machine


def visible_gpus(description: str) -> int:
    """How many GPUs a run may have."""
    if "emulated" in description:
        return int(os.environ.get("LOOM_EMULATION_GPUS", "1"))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(smi("name") if listed is None else [gpu for gpu in listed.split(",") if gpu.strip()])


def libraries_of_python(python: str) -> list:
    """The folders of libraries in NVIDIA's Python packages, which PyTorch brings along."""
    seek = (
        "import importlib.util, pathlib\n"
        "spec = importlib.util.find_spec('nvidia')\n"
        "for place in spec.submodule_search_locations if spec else []:\n"
        "    for folder in sorted(pathlib.Path(place).glob('*/lib')): print(folder)\n"
    )
    return output_of([python, "-c", seek]).splitlines() if shutil.which(python) else []


def nccl_of_python(folders: list):
    """The library in NVIDIA's Python package; None where it is not."""
    found = [library for folder in folders for library in sorted(Path(folder).glob("libnccl.so*"))]
    return str(found[0]) if found else None


def find_nvcc():
    """The toolkit's compiler; None where there is none."""
    places = [os.environ.get("NVCC"), "nvcc", "/usr/local/cuda/bin/nvcc"]
    if os.environ.get("CUDA"):
        places.insert(0, os.environ["CUDA"] + "/bin/nvcc")
    return next((shutil.which(place) for place in places if place and shutil.which(place)), None)


def find_toolkit():
    """The toolkit's folder; None where there is none."""
    nvcc = find_nvcc()
    return Path(nvcc).resolve().parent.parent if nvcc else None


def our_environment(folders: list) -> dict:
    """gptloom's: what it, and the libraries that it loads, look for at run time is found in the toolkit, and after that in
    Python packages. (PyTorch finds its own.)"""
    toolkit = find_toolkit()
    places = [os.environ.get("LD_LIBRARY_PATH"), toolkit and str(toolkit / "lib64"), *folders]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(place for place in places if place)}


def known_peak(name: str):
    for words, rate in KNOWN_PEAKS:
        if all(word in name for word in words):
            return rate
    return None


def builds(source: str, words: list, language: str = "c") -> bool:
    """Whether the compiler makes a program of the source."""
    compiler = os.environ.get("CC", "gcc") if language == "c" else os.environ.get("CXX", "g++")
    command = [*shlex.split(compiler), "-x", language, "-", *words, "-o", os.devnull]
    try:
        done = subprocess.run(command, input=source, text=True, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def links(header: str, library: str) -> bool:
    """Whether the compiler finds a library, installed or in the folder that dev/third-party.sh fills."""
    folder = ROOT / os.environ.get("THIRD_PARTY", "third-party")
    source = f"#include <stddef.h>\n#include <stdio.h>\n#include <{header}>\nint main(void) {{ return 0; }}\n"
    return builds(source, [f"-I{folder}/include", f"-L{folder}/lib", f"-l{library}"])


def missing_of_toolkit(folders: list) -> list:
    """What the build takes of the toolkit, and cuBLASLt, which gptloom loads when it opens a GPU."""
    toolkit = find_toolkit()
    if not toolkit:
        return ["CUDA's nvcc"]
    headers = ("cuda_runtime_api.h", "cublasLt.h")
    missing = [f"CUDA's {name}" for name in headers if not (toolkit / "include" / name).exists()]
    if not (toolkit / "lib64/libcudart_static.a").exists():
        missing.append("CUDA's libcudart_static.a")
    places = [toolkit / "lib64", *map(Path, folders), *map(Path, os.environ.get("LD_LIBRARY_PATH", "").split(":"))]
    named = os.environ.get("LOOM_CUBLASLT")
    if not named and not any(list(place.glob("libcublasLt.so.*")) for place in places):
        missing.append("cuBLASLt (libcublasLt.so)")
    return missing


def check(settings) -> int:
    """Says in one line what building and reporting need and this machine does not have."""
    missing = [] if smi("name") else ["a GPU that nvidia-smi shows"]
    missing += missing_of_toolkit(libraries_of_python(settings.python))
    if not shutil.which("make"):
        missing.append("make")
    compilers = {"c": shlex.split(os.environ.get("CC", "gcc"))[0], "c++": shlex.split(os.environ.get("CXX", "g++"))[0]}
    absent = {language for language, name in compilers.items() if not shutil.which(name)}
    missing += [f"the compiler {compilers[language]}" for language in sorted(absent)]
    parallel = "#include <omp.h>\nint main(void) { return omp_get_max_threads() == 0; }\n"
    for language in ("c", "c++"):
        if language not in absent and not builds(parallel, ["-fopenmp"], language):
            missing.append(f"OpenMP for {compilers[language]} (-fopenmp)")
    if "c" not in absent:
        libraries = [
            f"{name} (<{header}>, -l{library})"
            for name, header, library in (
                ("cJSON", "cjson/cJSON.h", "cjson"),
                ("xxHash", "xxhash.h", "xxhash"),
            )
            if not links(header, library)
        ]
        if libraries:
            libraries[-1] += (
                "; dev/setup.sh installs libraries, or dev/third-party.sh on another machine "
                "collects them in a folder third-party to copy here"
            )
        missing += libraries
    if missing:
        say("gpu-report: missing here: " + ", ".join(missing))
        return 2
    seek = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        run([settings.python, "-c", seek], 60)
    except (OSError, Failed):
        say(f"gpu-report: warning: {settings.python} has no PyTorch, which will be left out")
    return 0


# ------------------------------------------------------------------------------------------------------------ phases
CUDNN_ATTENTION = "attention, by cuDNN"


# A line of `gptloom parity`: the op, its shape and dtypes, how much of its bound the worst output takes, the verdict.
CASE = re.compile(r"^(\w+) .*?(?: (\d\S*) \w+)? +(ok|FAILED|not supported)$")
COUNTS = re.compile(r"^\d+ ok, \d+ failed, \d+ not supported", re.M)


def read_cases(out: str) -> dict:
    """What `gptloom parity` printed, by op."""
    results = {}
    lines = out.splitlines()
    for i, line in enumerate(lines):
        case = CASE.match(line)
        if not case:
            continue
        op, ratio, verdict = case.groups()
        result = results.setdefault(op, {"ok": 0, "failed": 0, "unsupported": 0, "worst": None, "failures": []})
        result[{"ok": "ok", "FAILED": "failed"}.get(verdict, "unsupported")] += 1
        if ratio:
            result["worst"] = max(result["worst"] or 0.0, float(ratio))
        if verdict == "FAILED" and len(result["failures"]) < 5:
            why = lines[i + 1].strip() if i + 1 < len(lines) else ""
            result["failures"].append(f"{line.split('  ')[0]}: {why}")
    return results


def parity_of(settings, op: str, flags: list, limit: float) -> dict:
    """Runs the cases of an op, of a file of cases, or all, in one process."""
    out = run_ours(settings, ["parity", "--device", settings.device, "--op", op, *flags], limit, (0, 1)).stdout
    if not COUNTS.search(out):
        raise Failed(last_line(out), out)
    return read_cases(out)


def case_files() -> list:
    return sorted(
        path.stem
        for path in (ROOT / "csrc/cases").glob("*.c")
        if path.stem != "all" and not path.stem.startswith("case")
    )


def merge(results: dict) -> dict:
    """All ops of a file of cases as one."""
    worst = [result["worst"] for result in results.values() if result["worst"] is not None]
    whole = {name: sum(result[name] for result in results.values()) for name in ("ok", "failed", "unsupported")}
    failures = [failure for result in results.values() for failure in result["failures"]]
    return whole | {"worst": max(worst, default=None), "failures": failures[:5]}


def parity(settings, clock: Clock) -> dict:
    """All ops in one process; if it breaks, each file of cases in a process of its own, as a kernel that breaks the GPU's
    context ends all that would come after it."""
    end = time.time() + clock.limit("parity")

    def left() -> float:
        return min(end - time.time(), clock.left())

    results = {}
    try:
        results = parity_of(settings, settings.parity_op, [], left())
    except Failed as failed:
        say(f"parity in one process: {failed}; now each file of cases by itself")
        for op in case_files() if settings.parity_op == "all" else [settings.parity_op]:
            try:
                results |= parity_of(settings, op, [], left())
            except Failed as again:
                results[op] = {"reason": str(again), "left_out": False}
    try:
        flags = ["--dtype", "bf16", "--attention", "cudnn"]
        results[CUDNN_ATTENTION] = merge(parity_of(settings, "attention", flags, left()))
    except Failed as failed:
        results[CUDNN_ATTENTION] = {"reason": str(failed), "left_out": lacks_cudnn(failed)}
    bad = [
        row
        for row, result in results.items()
        if not result.get("left_out") and result.get("failed", 1)
    ]
    phase = {"ops": results, "ok": sum(result.get("ok", 0) for result in results.values())}
    if bad:
        phase["reason"] = "failed: " + ", ".join(bad)
    return phase


def bench(settings, clock: Clock, scratch: Path) -> dict:
    path = scratch / "bench.json"
    command = ["bench", "--device", settings.device, "--dtype", "bf16", "--json", path]
    try:
        run_ours(settings, command + settings.bench_flags, clock.limit("bench"))
    except Failed as failed:
        # What was timed before is in the file.
        timed = json.loads(path.read_text()) if path.exists() else {}
        return timed | {"reason": str(failed)}
    return json.loads(path.read_text())


def write_tokens(path: Path, settings) -> None:
    """A shard in llm.c's format of more random tokens than a run reads. Small ids are likelier, so that there is
    something to learn."""
    generator = random.Random(1)
    count = (settings.steps + 2) * settings.batch * settings.seq_len + 1
    header = array.array("i", [SHARD_MAGIC, SHARD_VERSION, count])
    header.extend([0] * (SHARD_HEADER_INTS - len(header)))
    vocabulary = settings.vocab_size
    ids = array.array("H", (int(vocabulary * generator.random() ** 3) for _ in range(count)))
    part = path.with_suffix(".part")
    part.write_bytes(header.tobytes() + ids.tobytes())
    part.rename(path)


def median_of(steps: list, key: str):
    return statistics.median(step[key] for step in steps) if key in steps[0] else None


def read_metrics(path: Path, warmup: int, tokens_per_step: int) -> dict:
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    timed = steps[warmup:]
    if not timed:
        raise Failed(f"it made {len(steps)} steps only")
    return {
        "tokens_per_s": len(timed) * tokens_per_step / sum(step["ms"] for step in timed) * 1e3,
        "median_ms": median_of(timed, "ms"),
        "loss": steps[-1]["loss"],
        "first_loss": steps[0]["loss"],
        "ms_waited": median_of(timed, "ms_waited"),
        "ms_spread": median_of(timed, "ms_spread"),
    }


def training_command(settings, data: Path, out: Path, micro_batch: int, more: dict) -> list:
    """What gptloom is called with; it leaves no checkpoint, whose writing is not what is measured."""
    flags = {
        "data": data,
        "out": out,
        "device": settings.device,
        "dtype": "bf16",
        "n-layer": settings.n_layer,
        "n-head": settings.n_head,
        "n-embd": settings.n_embd,
        "block-size": settings.seq_len,
        "vocab-size": settings.vocab_size,
        "batch": settings.batch,
        "micro-batch": micro_batch,
        "seq-len": settings.seq_len,
        "steps": settings.steps,
        "lr": 3e-4,
        "schedule": "constant",
        "warmup": 0,
        "val-fraction": 0,
        "val-every": 0,
        "sample-every": 0,
    }
    command = ["train", "--no-save"]
    for name, value in (flags | more).items():
        command += [f"--{name}", value]
    return command


def train_once(
    settings, micro_batch: int, data: Path, scratch: Path, attention: str, limit: float
) -> dict:
    out = scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    more = {} if attention == "own" else {"attention": attention}
    command = training_command(settings, data, out, micro_batch, more)
    with MemoryWatch() as memory:
        run_ours(settings, command, limit)
    result = read_metrics(out / "metrics.jsonl", settings.warmup, settings.batch * settings.seq_len)
    shutil.rmtree(out, ignore_errors=True)
    return result | {"micro_batch": micro_batch, "peak_mib": memory.peak_mib()}


def train(settings, clock: Clock, data: Path, scratch: Path, attention: str, result: dict) -> dict:
    """Trains with gptloom at the largest micro-batch that fits, or that did before; keeps what failed on the way."""
    end = time.time() + clock.limit("train")
    micro_batch = result["runs"][0]["micro_batch"] if result["runs"] else settings.micro_batch
    while True:
        try:
            limit = min(end - time.time(), clock.left())
            return train_once(settings, micro_batch, data, scratch, attention, limit)
        except TROUBLE as failed:
            if not lacks_cudnn(failed):
                result["failures"].append(f"micro-batch {micro_batch}: {failed}")
            if not is_short_of_memory(failed) or micro_batch == 1:
                raise
        micro_batch //= 2


def train_with_pytorch(settings, clock: Clock, data: Path) -> dict:
    if not shutil.which(settings.python):
        raise LeftOut(f"there is no {settings.python}")
    command = [settings.python, ROOT / "dev/torch/train_gpu.py", "--data", data]
    for name in (
        "n_layer",
        "n_head",
        "n_embd",
        "vocab_size",
        "seq_len",
        "batch",
        "micro_batch",
        "steps",
        "warmup",
    ):
        command += ["--" + name.replace("_", "-"), getattr(settings, name)]
    with MemoryWatch() as memory:
        done = run(command, clock.limit("pytorch"), (0, 3))
    result = json.loads(last_line(done.stdout))
    if "left_out" in result:
        raise LeftOut(result["left_out"])
    return result | {
        "allocated_mib": result["peak_mib"],
        "peak_mib": memory.peak_mib() or result["peak_mib"],
    }


# Contenders in the order of their turns.
OWN, CUDNN, PYTORCH = "gptloom", "gptloom, attention by cuDNN", "PyTorch, compiled"


def tokens_for(settings, scratch: Path) -> Path:
    data = settings.data or scratch / "tokens.bin"
    if not data.exists():
        write_tokens(data, settings)
    return data


def contend(settings, clock: Clock, scratch: Path, contender: str, result: dict) -> dict:
    data = tokens_for(settings, scratch)
    if contender != PYTORCH:
        attention = "own" if contender == OWN else "cudnn"
        return train(settings, clock, data, scratch, attention, result)
    try:
        return train_with_pytorch(settings, clock, data)
    except TROUBLE as failed:
        result["failures"].append(str(failed))
        raise


def is_left_out(failed: Exception, contender: str, runs: list) -> bool:
    """What is no failure: a contender that cannot be had here, and a turn more than there was time for."""
    if isinstance(failed, OutOfTime):
        return contender == CUDNN or bool(runs)
    return isinstance(failed, LeftOut) or (contender == CUDNN and lacks_cudnn(failed))


def contest(settings, clock: Clock, scratch: Path) -> dict:
    """All contenders once, then those that worked again while there is time beside that for ranks. Each has a list of
    runs, a list of what failed, and a reason if it did not come to its end."""
    results = {name: {"runs": [], "failures": []} for name in (OWN, PYTORCH, CUDNN)}
    seconds = {}
    for turn in range(settings.rounds):
        for name, result in results.items():
            spare = clock.left() - settings.ranks_limit
            if "reason" in result or (turn and spare < ANOTHER_ROUND * seconds[name]):
                continue
            begin = time.time()
            try:
                result["runs"].append(contend(settings, clock, scratch, name, result))
                say(f"{name}: {result['runs'][-1]['tokens_per_s']:,.0f} tokens/s")
            except (LeftOut, *TROUBLE) as failed:
                result["reason"] = str(failed)
                result["left_out"] = is_left_out(failed, name, result["runs"])
                say(f"{name}: {failed}")
            seconds[name] = time.time() - begin
    return results


# ------------------------------------------------------------------------------------------------------------- ranks
def rank_runs(gpus: int) -> list:
    """What is run with ranks. The batch grows with the GPUs: each has as much to do as one alone."""
    runs = [
        {"name": "NCCL, one rank", "comm": "nccl", "ranks": 1, "gpus": 1, "zero": 0},
        {"name": "MPI, two ranks share a GPU", "comm": "mpi", "ranks": 2, "gpus": 1, "zero": 0},
    ]
    counts = [2**i for i in range(1, gpus.bit_length()) if 2**i <= gpus]
    if gpus > 1 and gpus not in counts:
        counts.append(gpus)
    for n in counts:
        for zero in (0, 1):
            name = f"NCCL, {n} GPUs" + (f", ZeRO stage {zero}" if zero else "")
            runs.append({"name": name, "comm": "nccl", "ranks": n, "gpus": n, "zero": zero})
    return runs


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def rank_commands(settings, row: dict, command: list, nccl) -> list:
    """A run's processes: torchrun's environment for NCCL; by MPI gptloom starts its ranks itself."""
    environment = dict(settings.environment)
    command = [settings.program, *command]
    if row["comm"] == "mpi":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return [(command + ["--ranks", row["ranks"]], environment)]
    if nccl:
        environment["LOOM_NCCL"] = nccl
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {name: str(row["ranks"]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return [
        (command, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(row["ranks"])
    ]


def train_ranks(settings, row: dict, micro_batch: int, scratch: Path, nccl, limit: float) -> dict:
    out, data = scratch / "ranks", tokens_for(settings, scratch)
    shutil.rmtree(out, ignore_errors=True)
    steps, warmup = settings.rank_steps, settings.rank_warmup
    if row["comm"] == "mpi":
        steps, warmup = max(steps // 3, 2), max(warmup // 3, 1)  # gradients go through the host
    batch = settings.batch * row["gpus"]
    micro_batch = min(micro_batch, batch // row["ranks"])
    more = {"batch": batch, "steps": steps, "comm": row["comm"], "zero": row["zero"], "comm-timeout": 40}
    command = training_command(settings, data, out, micro_batch, more)
    with MemoryWatch() as memory:
        run_together(rank_commands(settings, row, command, nccl), limit, scratch)
    result = read_metrics(out / "metrics.jsonl", warmup, batch * settings.seq_len)
    shutil.rmtree(out, ignore_errors=True)
    return result | {"micro_batch": micro_batch, "batch": batch, "peak_mib": memory.peak_mib()}


def cannot_be_had(failed: Exception):
    """The library that is not here, as gptloom says; None if that is not why it failed."""
    said = str(failed)
    if "--comm nccl:" in said and "cannot be loaded" in said:
        return "NCCL is not here, on the library path, by LOOM_NCCL or as a Python package"
    if "mpirun is not on the path" in said or ("--comm mpi:" in said and "cannot be loaded" in said):
        return "Open MPI is not here (its mpirun, or mpicc when this was built)"
    return None


def ranks(settings, clock: Clock, scratch: Path, description: str, alone: list) -> list:
    """A row for each run: its figures, or the reason why it has none. `alone` are gptloom's on one GPU."""
    end = time.time() + clock.limit("ranks")
    # Emulated GPUs are for a library that knows them, which has to be named.
    nccl = os.environ.get("LOOM_NCCL")
    named = nccl or "emulated" not in description
    nccl = nccl or (nccl_of_python(settings.libraries) if named else None)
    rows = rank_runs(visible_gpus(description))
    for row in rows:
        limit = min(end - time.time(), clock.left(), ONE_RANKS_RUN)
        try:
            if row["comm"] == "nccl" and not named:
                raise LeftOut("NCCL does not know emulated GPUs")
            if not alone:
                raise LeftOut("gptloom does not train on one GPU")
            if limit < 1:
                raise LeftOut("no time was left")
            # Those that share a GPU share its memory.
            micro_batch = max(alone[0]["micro_batch"] * row["gpus"] // row["ranks"], 1)
            row |= train_ranks(settings, row, micro_batch, scratch, nccl, limit)
            say(f"{row['name']}: {row['tokens_per_s']:,.0f} tokens/s")
        except (LeftOut, *TROUBLE) as failed:
            absent = cannot_be_had(failed)
            row["reason"] = absent or str(failed)
            row["left_out"] = bool(absent) or isinstance(failed, LeftOut)
            say(f"{row['name']}: {row['reason']}")
    return rows


# ------------------------------------------------------------------------------------------------------- CUDA's tools
# What is looked at closely: cases of parity for compute-sanitizer; ops of the benchmark, and their kernels, for Nsight
# Compute.
SANITIZED = (("racecheck", ("attention", "layernorm", "cross_entropy", "softmax", "embedding")), ("initcheck", ("adamw",)))
COUNTED_OPS = ("attention_backward", "cross_entropy", "layernorm_backward")
COUNTED_KERNELS = "regex:attention_backward_(keys|queries)|cross_entropy|layernorm_backward"
COUNTERS = ("Duration", "Compute (SM) Throughput", "DRAM Throughput", "L2 Hit Rate", "Achieved Occupancy",
            "Registers Per Thread")


def find_tool(name: str):
    """A program of the toolkit; LeftOut where it is not."""
    toolkit = find_toolkit()
    found = shutil.which(name) or (toolkit and shutil.which(str(toolkit / "bin" / name)))
    if not found:
        raise LeftOut(f"{name} is not here")
    return found


def sanitize(settings, clock: Clock) -> dict:
    """compute-sanitizer over small cases: a line for each tool and op."""
    tool = find_tool("compute-sanitizer")
    end, results = time.time() + clock.limit("sanitizer"), {}
    for check_name, ops in SANITIZED:
        for op in ops:
            command = [tool, "--tool", check_name, "--error-exitcode", "9", settings.program, "parity"]
            command += ["--device", settings.device, "--op", op, "--dtype", "bf16"]
            row = f"{check_name}, {op}"
            try:
                done = run(command, min(end - time.time(), clock.left()), (0, 1, 9), settings.environment)
                found = last_line(done.stdout)
                results[row] = {"clean": done.returncode != 9, "line": found}
            except OutOfTime as failed:
                results[row] = {"clean": None, "line": str(failed)}
            except Failed as failed:
                results[row] = {"clean": False, "line": str(failed)}
    bad = [row for row, result in results.items() if result["clean"] is False]
    return {"results": results} | ({"reason": "failed: " + ", ".join(bad)} if bad else {})


def count(settings, clock: Clock) -> dict:
    """Nsight Compute's counters of the hot kernels, as a list of kernels with what is known of each."""
    tool = find_tool("ncu")
    end, kernels, why = time.time() + clock.limit("counters"), [], ""
    for op in COUNTED_OPS:
        command = [tool, "--csv", "--kernel-name", COUNTED_KERNELS, "--launch-skip", "6", "--launch-count", "3"]
        for section in ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats"):
            command += ["--section", section]
        command += [settings.program, "bench", "--device", settings.device, "--op", op, "--dtype", "bf16"]
        command += ["--seconds", "0.001"]
        try:
            out = run(command, min(end - time.time(), clock.left()), (0,), settings.environment).stdout
        except Failed as failed:
            why = str(failed)
            continue
        lines = [line for line in out.splitlines() if line.startswith('"')]
        found = {}
        for row in csv.DictReader(lines):
            kernel = found.setdefault(row.get("ID"), {"kernel": row.get("Kernel Name", "?")})
            kernel[row.get("Metric Name", "?")] = f"{row.get('Metric Value', '')} {row.get('Metric Unit', '')}".strip()
        kernels += found.values()
    if not kernels:
        raise LeftOut(f"ncu tells nothing: {why or 'no kernel was met'}")
    return {"kernels": kernels}


def look_closely(name: str, phase, *arguments) -> dict:
    """A tool's result; that it is not here, or may not look, is no failure of ours."""
    say(f"{name} ...")
    try:
        return phase(*arguments)
    except LeftOut as absent:
        return {"reason": str(absent), "left_out": True}
    except TROUBLE as failed:
        return {"reason": str(failed), "left_out": isinstance(failed, OutOfTime)}


# ------------------------------------------------------------------------------------------------------------ report
def flops_per_token(settings) -> float:
    """6 for each parameter, and 6 L C T for causal attention's products: forward and twice that backward."""
    C, L, T, V = settings.n_embd, settings.n_layer, settings.seq_len, settings.vocab_size
    parameters = (V + T) * C + L * (12 * C * C + 13 * C) + 2 * C
    return 6.0 * parameters + 6.0 * L * C * T


def summarise(report: dict, settings) -> None:
    """Adds each contender's median and MFU, and ratios, to the report."""
    name = report["machine"].get("gpu", "")
    rates = {"known": known_peak(name), "measured": report["bench"].get("peak_tflop_per_s")}
    report["peaks_tflop_per_s"] = rates
    report["flops_per_token"] = flops_per_token(settings)
    for result in report["training"].values():
        if not result["runs"]:
            continue
        speed = statistics.median(run["tokens_per_s"] for run in result["runs"])
        result["tokens_per_s"] = speed
        for kind, rate in rates.items():
            result[f"mfu_of_{kind}"] = (
                speed * report["flops_per_token"] / rate / 1e12 if rate else None
            )
    alone = report["training"][OWN].get("tokens_per_s")
    for row in report["ranks"]:
        if alone and "tokens_per_s" in row:
            row["times_one_gpu"] = row["tokens_per_s"] / alone
            row["efficiency"] = row["times_one_gpu"] / row["gpus"]
    ours, theirs = (report["training"][name].get("tokens_per_s") for name in (OWN, PYTORCH))
    report["ratio_to_pytorch"] = ours / theirs if ours and theirs else None


def number(value, form: str) -> str:
    return "" if value is None else format(value, form)


def percent(value) -> str:
    return number(value, ".1%")


def failure_word(result: dict) -> str:
    return "left out" if result.get("left_out") else "FAILED"


def table(header: list, rows: list) -> list:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)] + [
        "| " + " | ".join(str(cell) for cell in row) + " |" for row in rows
    ]


def training_table(report: dict) -> list:
    rows = []
    for name, result in report["training"].items():
        if not result["runs"]:
            rows.append(
                [
                    name,
                    failure_word(result),
                    result["reason"],
                    "",
                    "",
                    "",
                    "",
                    "",
                ]
            )
            continue
        runs = result["runs"]
        peak = runs[0]["peak_mib"]
        rows.append(
            [
                name,
                f"{result['tokens_per_s']:,.0f}",
                ", ".join(f"{run['tokens_per_s']:,.0f}" for run in runs),
                f"{statistics.median(run['median_ms'] for run in runs):.2f}",
                percent(result["mfu_of_known"]),
                percent(result["mfu_of_measured"]),
                number(peak, ",.0f"),
                f"{runs[0]['micro_batch']}, {runs[0]['loss']:.3f}",
            ]
        )
    header = [
        "bf16",
        "tokens/s",
        "each run",
        "ms a step",
        "MFU of data sheet",
        "of measured rate",
        "MiB",
        "micro-batch, last loss",
    ]
    return table(header, rows)


def parity_table(report: dict) -> list:
    rows = []
    for op, result in report["parity"].get("ops", {}).items():
        if "reason" in result:
            rows.append([op, failure_word(result), "", "", result["reason"]])
        else:
            failures = "; ".join(result["failures"])
            rows.append(
                [
                    op,
                    result["ok"],
                    result["failed"],
                    result["unsupported"],
                    failures or number(result["worst"], ".2g"),
                ]
            )
    return table(
        ["op", "ok", "failed", "not supported", "nearest to its bound (1 is all of it)"], rows
    )


def ranks_table(report: dict) -> list:
    rows = []
    for row in report["ranks"]:
        if "reason" in row:
            rows.append([row["name"], failure_word(row), row["reason"]] + [""] * 6)
            continue
        rows.append(
            [
                row["name"],
                f"{row['tokens_per_s']:,.0f}",
                number(row.get("times_one_gpu"), ".2f"),
                percent(row.get("efficiency")),
                f"{row['median_ms']:.2f}",
                number(row["ms_waited"], ".2f"),
                number(row["ms_spread"], ".2f"),
                number(row["peak_mib"], ",.0f"),
                f"{row['batch']}, {row['micro_batch']}, {row['loss']:.3f}",
            ]
        )
    header = ["ranks", "tokens/s", "times one GPU's", "efficiency", "ms a step", "of them waiting", "ms apart", "MiB"]
    return table(header + ["batch, micro-batch, last loss"], rows)


def ranks_in_short(report: dict) -> str:
    """The most GPUs that worked together, and what failed."""
    good = [row for row in report["ranks"] if "reason" not in row]
    bad = [row["name"] for row in report["ranks"] if "reason" in row and not row["left_out"]]
    words = []
    if good:
        most = max(good, key=lambda row: (row["gpus"], row["tokens_per_s"]))
        times = number(most.get("efficiency"), ".1%")
        words.append(f"{most['name']}: {most['tokens_per_s']:,.0f} tokens/s" + (f", efficiency {times}" if times else ""))
    if bad:
        words.append("failed: " + "; ".join(bad))
    return "; ".join(words) or "left out: see below"


def bench_table(report: dict) -> list:
    rows, ours = [], {}
    for row in report["bench"].get("results", []):
        key = row["op"], row["shape"]
        ratio = f"{ours[key] / row['ms']:.2f} times as fast" if key in ours else ""
        ours.setdefault(key, row["ms"])
        rows.append(
            [
                row["op"],
                row["shape"],
                row["by"],
                f"{row['ms']:.4f}",
                number(row.get("gb_per_s"), ".0f"),
                percent(row.get("of_copy")),
                number(row.get("tflop_per_s"), ".1f"),
                percent(row.get("of_peak")),
                ratio,
            ]
        )
    return table(
        ["op", "shape", "by", "ms", "GB/s", "of copy", "TFLOP/s", "of rate", "beside ours"], rows
    )


def tools_tables(report: dict) -> list:
    sanitizer, counters = report["sanitizer"], report["counters"]
    lines = [f"compute-sanitizer: {sanitizer['reason']}.", ""] if "reason" in sanitizer else []
    rows = [
        [row, {True: "clean", False: "FAILED", None: "left out"}[result["clean"]], result["line"]]
        for row, result in sanitizer.get("results", {}).items()
    ]
    lines += table(["compute-sanitizer", "result", "its last line"], rows) + [""] if rows else []
    lines += [f"Nsight Compute: {counters['reason']}.", ""] if "reason" in counters else []
    rows = [
        [kernel["kernel"][:60], *(kernel.get(name, "") for name in COUNTERS)] for kernel in counters.get("kernels", [])
    ]
    return lines + (table(["kernel", *COUNTERS], rows) + [""] if rows else [])


def phases_table(report: dict) -> list:
    parity_phase, bench_phase = report["parity"], report["bench"]
    rows = [
        [
            "parity with the oracle",
            parity_phase.get("reason") or f"all {parity_phase['ok']} cases hold",
        ]
    ]
    copy, rate = bench_phase.get("copy_gb_per_s"), bench_phase.get("peak_tflop_per_s")
    rows.append(
        [
            "benchmark",
            bench_phase.get("reason")
            or f"copy {number(copy, ',.0f')} GB/s, matrix rate {number(rate, ',.1f')} TFLOP/s",
        ]
    )
    ratio = report["ratio_to_pytorch"]
    rows.append(
        ["gptloom / PyTorch", f"{ratio:.3f} in tokens/s" if ratio else "not compared: see below"]
    )
    rows.append(["ranks", ranks_in_short(report)])
    rows.append(["time", f"{report['seconds']:.0f} s"])
    return table(["phase", "result"], rows)


def markdown(report: dict, settings) -> str:
    machine = report["machine"]
    about = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in machine.items()
        if value not in (None, "")
    ]
    shape = (
        f"{settings.n_layer} layers, {settings.n_head} heads, {settings.n_embd} channels, vocabulary {settings.vocab_size}, "
        f"T = {settings.seq_len}, batch {settings.batch}, {settings.steps} steps of which the first {settings.warmup} are "
        f"not counted"
    )
    lines = [
        f"# GPU: {machine.get('gpu', machine['device'])}, {report['date']}",
        "",
        *about_lines(about),
        "",
    ]
    lines += [
        "## Parity",
        "",
        *parity_table(report),
        "",
        "## Ops in bf16, median times with cold caches",
        "",
    ]
    lines += [*bench_table(report), "", "## Training and phases", "", shape + ".", ""]
    lines += [
        f"Arithmetic: {report['flops_per_token'] / 1e6:.1f} MFLOP a token (6 N + 6 L C T). PyTorch pads its vocabulary too, "
        "runs under torch.compile with bf16 autocast, fused attention and fused AdamW, and does not wait between steps.",
        "",
        *phases_table(report),
        "",
        *training_table(report),
        "",
        "## Ranks",
        "",
        f"bf16, {settings.rank_steps} steps of which the first {settings.rank_warmup} are not counted; by MPI, where all "
        "goes through the host, a third of that. The batch grows with the GPUs; efficiency is tokens/s of each GPU beside "
        "those of gptloom above on one. Waiting is rank 0's for communication; ranks' own work is so many ms apart.",
        "",
        *ranks_table(report),
        "",
        "## CUDA's tools",
        "",
        *tools_tables(report),
    ]
    failures = failure_lines(report)
    if failures:
        lines += ["Attempts that failed:", "", *failures, ""]
    return "\n".join(lines)


def failure_lines(report: dict) -> list:
    return [
        f"- {name}: {failure}"
        for name, result in report["training"].items()
        for failure in result["failures"]
    ]


def about_lines(words: list, width: int = 120) -> list:
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > width:
            lines.append("")
        lines[-1] += ("" if not lines[-1] else " ") + word + ("." if word is words[-1] else ",")
    return lines


def report_path(out: Path, report: dict) -> Path:
    if not out.is_dir():
        return out
    machine = report["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", machine.get("gpu", machine["device"]).lower())
    return out / f"{report['date']}-gpu-{name[:40].strip('-')}"


def save(report: dict, settings) -> Path:
    """Writes the JSON as far as it has come, and returns its path without the ending."""
    out = report_path(settings.out, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".json").write_text(json.dumps(report, indent=2) + "\n")
    return out


def say(text: str) -> None:
    print(text, flush=True)


# -------------------------------------------------------------------------------------------------------------- whole
GPT2 = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "vocab_size": 50257,
    "seq_len": 1024,
    "batch": 64,
}
GPT2 |= {"micro_batch": 32, "steps": 100, "warmup": 20, "rounds": 2, "rank_steps": 30, "rank_warmup": 10}

QUICK = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "vocab_size": 100,
    "seq_len": 16,
    "batch": 2,
    "micro_batch": 1,
}
QUICK |= {"steps": 3, "warmup": 1, "rounds": 1, "rank_steps": 3, "rank_warmup": 1}
QUICK_BENCH = ["--op", "fill", "--size", "small", "--flush", "1MiB", "--seconds", "0.001"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "build", type=Path, nargs="?", default=ROOT / "build", help="build folder (default: build)"
    )
    parser.add_argument("--program", type=Path, help="(default: BUILD/gptloom)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "dev/reports",
        metavar="PATH",
        help="PATH.json and PATH.md",
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--python", default=sys.executable, help="the python3 that has PyTorch")
    parser.add_argument(
        "--data", type=Path, help="a token shard of GPT-2's vocabulary (default: random tokens)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--started",
        type=float,
        default=time.time(),
        help="when the minutes began, in seconds since 1970",
    )
    parser.add_argument(
        "--check", action="store_true", help="only say what is missing on this machine"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny settings, to try the script itself"
    )
    parser.add_argument("--parity-op", metavar="NAME", help="compare this op alone (default: all)")
    for name, value in GPT2.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), type=int, metavar="N", help=f"(default: {value})"
        )
    for name, value in LIMITS.items():
        parser.add_argument(
            f"--{name}-limit",
            type=float,
            default=value,
            metavar="SECONDS",
            help="(default: %(default)s)",
        )
    settings = parser.parse_args()
    for name, value in (GPT2 | QUICK if settings.quick else GPT2).items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    settings.parity_op = settings.parity_op or ("fill" if settings.quick else "all")
    settings.bench_flags = QUICK_BENCH if settings.quick else ["--seconds", "0.15"]
    settings.program = settings.program or settings.build / "gptloom"
    return settings


def attempt(name: str, phase, *arguments) -> dict:
    """A phase's result, or the reason why there is none."""
    say(f"{name} ...")
    try:
        return phase(*arguments)
    except TROUBLE as failed:
        say(f"{name}: {failed}")
        return {"reason": str(failed)}


def measure(settings, description: str) -> dict:
    begin, clock = time.time(), Clock(settings)
    report = {"date": datetime.date.today().isoformat(), "machine": describe_machine(description)}
    with tempfile.TemporaryDirectory(prefix="gptloom-report-") as directory:
        scratch = Path(directory)
        report["parity"] = attempt("parity", parity, settings, clock)
        save(report, settings)
        report["bench"] = attempt("benchmark", bench, settings, clock, scratch)
        save(report, settings)
        say("training ...")
        report["training"] = contest(settings, clock, scratch)
        save(report, settings)
        say("ranks ...")
        alone = report["training"][OWN]["runs"]
        report["ranks"] = ranks(settings, clock, scratch, description, alone)
        save(report, settings)
        report["sanitizer"] = look_closely("compute-sanitizer", sanitize, settings, clock)
        report["counters"] = look_closely("Nsight Compute", count, settings, clock)
    report["seconds"] = time.time() - begin
    save(report, settings)
    summarise(report, settings)
    return report


def main() -> int:
    settings = parse_arguments()
    if settings.check:
        return check(settings)
    if not settings.program.exists():
        say(f"gpu-report: {settings.program} is not there: run make first")
        return 2
    settings.libraries = libraries_of_python(settings.python)
    settings.environment = our_environment(settings.libraries)
    try:
        description = find_device(settings)
    except Failed as failed:
        say(f"gpu-report: no GPU to report on: {failed}")
        return 2
    say(description)
    report = measure(settings, description)
    out = save(report, settings)
    text = markdown(report, settings)
    out.with_name(out.name + ".md").write_text(text)
    say(f"\n{text}\n{out}.md and .json are written")
    tables = [phases_table(report), ranks_table(report), training_table(report)]
    say("\n" + "\n\n".join("\n".join(lines) for lines in tables))
    bad = ["reason" in report["parity"], "reason" in report["bench"]]
    results = [*report["training"].values(), *report["ranks"], report["sanitizer"], report["counters"]]
    bad += ["reason" in result and not result.get("left_out") for result in results]
    return 1 if any(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
