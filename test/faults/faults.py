#!/usr/bin/env python3
"""Makes things go wrong while the program runs, and looks whether it lost anything.

    test/faults/faults.py [--build DIR] [--tries N] [--seconds S] [--seed S] [--jobs N] [--only KIND,..] [--short]

Kinds: kill (SIGKILL at every change of a file and at random moments), calls (one call of one call site fails with an errno
that it may give), damage (a file is cut, flipped, emptied, removed, or is something else), filesystems (full, read-only,
without links, fsync or locks, slow). What is injected is chosen by the seed: a call site at a time, all of them before one
comes again.

A try is good if the program ends within its time with 0, or with 2 and one line "gptloom: ..."; if its output is then that
of an undisturbed one; and if what it left goes on: what it had saved loads, `--resume` (or a new start, where nothing was
begun) ends with the same bits, metrics and files as a run that was not disturbed, and nothing temporary stays. Whatever is not
good is called lost, and is shown with the command that shows it. The status is 1 if anything was lost; if fewer than LEAST tries of
a kind have done anything, however few were asked for; and, where all is asked for, if call sites are neither reached nor named
in scenarios.py. --seconds begin when all scenarios are learnt; a try that has not ended some time after them is ended, and is
not judged.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import glob
import hashlib
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from scenarios import NOT_HERE, SCENARIOS

TIME_LIMIT = 120  # of a program, in seconds: for hangs only
TIME_TO_END = 60  # of the tries that are under way when --seconds are over
LEAST = 5  # tries of a kind that have to be made, whatever the time
STEPS = 6

MEMORY = ["ENOMEM"]
ERRNOS = {
    **dict.fromkeys("malloc calloc realloc aligned_alloc posix_memalign strdup strndup asprintf open_memstream".split(), MEMORY),
    **dict.fromkeys("open openat".split(), ["EACCES", "EMFILE", "EINTR", "EIO", "ENOSPC"]),
    **dict.fromkeys("fopen fdopen".split(), ["EACCES", "EMFILE", "ENOMEM"]),
    **dict.fromkeys("write pwrite".split(), ["ENOSPC", "EIO", "EDQUOT", "EINTR", "short"]),
    **dict.fromkeys("read pread".split(), ["EIO", "EINTR", "short"]),
    **dict.fromkeys("fsync fdatasync".split(), ["EIO", "ENOSPC", "EINTR"]),
    **dict.fromkeys("rename renameat2 link symlink mkdir".split(), ["ENOSPC", "EIO", "EACCES"]),
    **dict.fromkeys("unlink unlinkat rmdir remove nftw".split(), ["EACCES", "EIO"]),
    **dict.fromkeys("fclose fflush fwrite fputs fputc fprintf printf puts putchar".split(), ["ENOSPC", "EIO"]),
    "mmap": ["ENOMEM", "EACCES", "ENODEV"],
    "close": ["EIO", "EINTR"],
    "ftruncate": ["EFBIG", "ENOSPC"],
    "flock": ["ENOLCK", "EINTR"],
    "create": ["ENOSPC", "EACCES"],
    **dict.fromkeys("opendir readdir fgets fread getline fstat stat lstat lseek readlink realpath".split(), ["EIO"]),
    **dict.fromkeys("pthread_create fork getrandom".split(), ["EAGAIN"]),
    **dict.fromkeys("pipe pipe2 dup2 socket accept".split(), ["EMFILE"]),
    **dict.fromkeys("bind listen connect send recv poll".split(), ["ECONNRESET", "EINTR", "ENOMEM"]),
    "glob": MEMORY,
    "setsockopt": ["ENOMEM"],
    "getaddrinfo": ["EAGAIN"],
}

# What a scenario trains with, beside MODEL: every dtype and state of the optimizer, the emulation, ranks.
TINY = "--n-layer 1 --n-head 1 --n-embd 16 --block-size 16 --batch 2 --lr 1e-3 --threads 1 --memory 64MiB -q".split()
RHYTHM = f"--steps {STEPS} --checkpoint-every 2 --val-every 3 --val-tokens 32 --sample-every 4 --sample-tokens 4 --keep 2".split()
VARIANTS = {
    "fp32": [],
    "bf16": ["--dtype", "bf16"],
    "bf16-small": "--dtype bf16 --master-weights off --optimizer-dtype bf16 --grad-dtype bf16".split(),
    "fp16": ["--dtype", "fp16"],
    "moments": ["--optimizer-dtype", "bf16"],
    "emulated": ["--device", "cuda"],
    "ranks": "--ranks 2 --micro-batch 1 --deterministic-reduce".split(),
}


ONE_RUN = ["run", "resume", "sample", "plan", "plot", "info"]


class Lost(Exception):
    """What was lost, in a line."""


class Unended(Exception):
    """A try was under way still when all had to end."""


def read(path):
    with open(path, "rb") as file:
        return file.read()


def latest_of(run):
    """The checkpoint that `latest` leads to: a link, or, where there are no links, a file with its name; where it could not
    be made, the newest."""
    path = os.path.join(run, "checkpoints", "latest")
    if not os.path.lexists(path):
        return max(glob.glob(os.path.join(run, "checkpoints", "step-*")), default=path)
    if os.path.isfile(path):
        return os.path.join(run, "checkpoints", read(path).decode().strip())
    return path


def bits_of(run):
    names = ["model.safetensors", "optimizer.safetensors", "training_state.json"]
    return hashlib.sha256(b"".join(read(os.path.join(latest_of(run), name)) for name in names)).hexdigest()


def losses_of(run):
    """What metrics say of each step, but for its times."""
    lines = [json.loads(line) for line in read(os.path.join(run, "metrics.jsonl")).splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"], line.get("val_loss")) for line in lines]


def files_of(run):
    found = set()
    for folder, _, names in os.walk(run):
        found.update(os.path.relpath(os.path.join(folder, name), run) for name in names)
    return found - {"checkpoints/latest"}  # a link to a directory is none of the names; a file is


def environment_of(process):
    try:
        return b"\0" + read(f"/proc/{process}/environ")
    except OSError:
        return b""


def read_to_end(terminal):
    with contextlib.suppress(OSError):  # EIO at its end
        while os.read(terminal, 4096):
            pass
    os.close(terminal)


of_this_thread = threading.local()


def port_of_this_thread():
    """A port that is free, below those that the kernel gives to connections. The name of an abstract socket holds it, as in
    the tests of ranks (test/support_ranks.h): no other test gets it."""
    if not hasattr(of_this_thread, "port"):
        for port in range(20000 + os.getpid() % 500 * 12, 32000, 2):
            holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError), socket.socket() as free:
                holder.bind(f"\0gptloom-test-port-{port}")
                free.bind(("127.0.0.1", port))
                of_this_thread.port, of_this_thread.holder = port, holder
                break
            holder.close()
        else:
            raise SystemExit("faults: no port is free")
    return of_this_thread.port


def remove_orphans():
    """Memory that the stand-in for NCCL had in ranks that are gone: it is named by a process."""
    for path in glob.glob("/dev/shm/gptloom-nccl-*"):
        owner = path.split("-")[2]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def has_litter(run):
    """What the next start removes."""
    return any(".tmp" in name or name == "lock" for name in files_of(run))


class Lab:
    """Programs, and runs that nothing happened to, in a directory of their own."""

    def __init__(self, build, where):
        self.build, self.where = os.path.abspath(build), where
        # Of a sanitized program the sanitizer's library comes behind ours, so that its memory can run out too.
        linked = subprocess.run(["ldd", os.path.join(self.build, "gptloom")], capture_output=True, text=True).stdout
        sanitizer = re.search(r"=> (\S*/libasan\S*)", linked)
        self.preload = os.path.join(self.build, "test", "libfaults.so") + (f" {sanitizer[1]}" if sanitizer else "")
        self.lock = threading.Lock()
        self.references = {}
        self.end = float("inf")  # of all tries
        with open(os.path.join(where, "text.txt"), "w", encoding="utf-8") as file:
            file.write("the quick brown fox jumps over the lazy dog\n" * 60)
        with open(os.path.join(where, "tokens.bin"), "wb") as file:  # a shard of llm.c's
            file.write(struct.pack("<256i", 20240520, 1, 500, *[0] * 253) + struct.pack("<500H", *(i * 7 % 64 for i in range(500))))
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("LOOM_FAULT", "OMPI_", "PMIX_"))}
        self.environment = {
            **keep,
            "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "TMPDIR": where,
        }

    def program(self, variant):
        return os.path.join(self.build, "emulated" if variant == "emulated" else "", "gptloom")

    def train(self, variant, out, more=()):
        # The bits hang on a device's tuning cache.
        tuning = os.path.join(self.where, f"reference-{variant}", "whole", "tuning.txt")
        more = [*more, "--tuning", tuning] if os.path.exists(tuning) else more
        return [self.program(variant), "train", "--data", "../text.txt", "--out", out, *TINY, *RHYTHM, *VARIANTS[variant], *more]

    def resume(self, variant, out):
        ranks = VARIANTS[variant][:2] if variant == "ranks" else []
        return [self.program(variant), "train", "--resume", "--out", out, "-q", *ranks]

    def start(self, command, folder, faults=None, stdout=subprocess.PIPE):
        environment = {**self.environment, **({"LD_PRELOAD": self.preload, **faults} if faults else {})}
        environment["LOOM_FAULT_FOLDER"] = folder  # a mark
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, command, folder, faults=None, tty=False):
        """Runs to the end; returns the status, stdout and stderr. What goes to a terminal is not kept."""
        if tty:
            master, slave = pty.openpty()
            process = self.start(command, folder, faults, slave)
            os.close(slave)
            drain = threading.Thread(target=read_to_end, args=(master,))
            drain.start()
        else:
            process = self.start(command, folder, faults)
        try:
            out, err = process.communicate(timeout=self.limit())
        except subprocess.TimeoutExpired:
            self.kill_all(folder)
            out, err = process.communicate()
            self.hangs(f"hangs: still there after {TIME_LIMIT} s: {err.decode(errors='replace')[-300:]}")
        finally:
            if tty:
                drain.join()
        return process.returncode, out or b"", err.decode(errors="replace")

    def limit(self):
        return max(0, min(TIME_LIMIT, self.end - time.monotonic()))

    def hangs(self, why):
        raise Lost(why) if time.monotonic() < self.end else Unended

    @staticmethod
    def all_in(folder):
        """The processes that were started in a folder, and what has come of them."""
        mark = b"\0LOOM_FAULT_FOLDER=" + folder.encode() + b"\0"
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and mark in environment_of(name)]

    def kill_all(self, folder):
        while there := self.all_in(folder):
            for process in there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)

    def wait_for_all(self, folder):
        """Waits for what a program that was killed has left running, as ranks are."""
        end = time.monotonic() + self.limit()
        while self.all_in(folder):
            if time.monotonic() > end:
                self.kill_all(folder)
                self.hangs(f"leaves processes running for {TIME_LIMIT} s")
            time.sleep(0.05)

    def must(self, command, folder, what="it"):
        status, out, err = self.run(command, folder)
        if status != 0:
            raise Lost(f"{what} ends with {status}: {err.strip()[-300:]}")
        return out

    def reference(self, variant):
        """A run that nothing happened to, and one that stopped in the middle, both made once."""
        with self.lock:
            if variant not in self.references:
                folder = os.path.join(self.where, f"reference-{variant}")
                os.makedirs(folder)
                self.must(self.train(variant, "whole"), folder, "a run without faults")
                self.must(self.train(variant, "half", ["--stop-after", "3"]), folder, "a run without faults")
                whole = os.path.join(folder, "whole")
                self.references[variant] = {
                    "half": os.path.join(folder, "half"),
                    "bits": bits_of(whole),
                    "losses": losses_of(whole),
                    "samples": read(os.path.join(whole, "samples.txt")),
                    "files": files_of(whole),
                }
            return self.references[variant]

    def folder(self):
        return tempfile.mkdtemp(prefix="try-", dir=self.where)

    def check_end(self, status, err, nonzero=(2,), ranks=False, several=0):
        """Whether a program ended as one may: with 0, or with a status and one line that says why. Before that of ranks
        mpirun may say something of its own; of several that nothing has started each may have a line."""
        lines = [line for line in err.splitlines() if line.strip()]
        if status == 0 and all(line.startswith("gptloom: ") for line in lines):
            return "went on"
        told = [line for line in lines if line.startswith("gptloom: ")]
        if status in nonzero and len(told) == 1 and (len(lines) == 1 or ranks and lines[-1] == told[0]):
            return "told"
        if status in nonzero and several and told == lines and 1 <= len(lines) <= several:
            return "told"
        raise Lost(f"ends with {status} and {len(lines)} lines: {' | '.join(lines)[-400:]}")

    def check_whole(self, variant, run):
        """Whether a run is what it would be had nothing happened."""
        reference = self.reference(variant)
        if bits_of(run) != reference["bits"]:
            raise Lost("has other bits")
        if losses_of(run) != reference["losses"]:
            raise Lost(f"has other metrics, of steps {[line[0] for line in losses_of(run)]}")
        if read(os.path.join(run, "samples.txt")) != reference["samples"]:
            raise Lost("has other samples")
        # What was not pruned, because that failed, goes the next time; what a kill left ahead of `latest` is set aside.
        spared = ("checkpoints/step-", "checkpoints/abandoned-step-")
        more = {name for name in files_of(run) - reference["files"] if not name.startswith(spared)}
        # Which ones stay with the last one depends on where sessions ended.
        last = f"checkpoints/step-{STEPS:08}/"
        gone = {
            name for name in reference["files"] - files_of(run) if name.startswith(last) or not name.startswith(spared)
        }
        if more or gone:
            raise Lost(f"has other files: {sorted(more)}, and not {sorted(gone)}")

    def check_goes_on(self, variant, folder):
        """Whether a run that something happened to loads, goes on, and becomes whole."""
        run = os.path.join(folder, "run")
        if os.path.lexists(os.path.join(run, "checkpoints", "latest")):
            self.must([self.program(variant), "info", "run"], folder, "info of what was saved")
        begun = os.path.exists(os.path.join(run, "config.ini"))
        self.must(self.resume(variant, "run") if begun else self.train(variant, "run"), folder, "going on")
        self.check_whole(variant, run)


# ------------------------------------------------------------------------------------------------------------ scenarios


class Scenario:
    """A command, what it needs, and what must be true when it has ended."""

    seconds = None  # that it takes undisturbed

    def __init__(self, lab, name, variant="fp32", words=None, result=None, rank=None):
        self.lab, self.name, self.variant, self.words, self.result = lab, name, variant, words, result
        self.trains = words is None
        self.which = rank  # of ranks, the one to which something happens; "none": what starts them
        self.fresh = name == "run"
        self.counts, self.lines = {}, {}
        self.expected = None

    def __str__(self):
        rank = "" if self.which is None else " starter" if self.which == "none" else f" rank {self.which}"
        return (self.name if self.variant == "fp32" else f"{self.name} {self.variant}") + rank

    def prepare(self):
        folder = self.lab.folder()
        half = self.lab.reference(self.variant)["half"]
        if not self.fresh:
            shutil.copytree(half, os.path.join(folder, "run"), symlinks=True)
        return folder

    def command(self):
        if self.name == "tcp":
            return self.by_tcp()
        if self.fresh:
            return self.lab.train(self.variant, "run")
        if self.trains:
            return self.lab.resume(self.variant, "run")
        return [self.lab.program(self.variant), *self.words]

    def by_tcp(self):
        """Two ranks that find each other by TCP, as torchrun starts them, with the stand-in for NCCL. One whose other is gone
        waits for it for this time, ten times as long where one may be at work alone."""
        port = port_of_this_thread()
        timeout = str(TIME_LIMIT) if self.seconds is None else "2"  # it is learnt without a failure
        words = self.lab.train("emulated", "tcp", ["--comm", "nccl", "--micro-batch", "1", "--comm-timeout", timeout])
        shared = f"WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port} LOOM_EMULATION_GPUS=2 LOOM_EMULATION_THREADS=1 "
        shared += f"LOOM_SECRET=secret LOOM_NCCL={self.lab.build}/test/libnccl_standin.so"
        start = "".join(f"env RANK={i} LOCAL_RANK={i} {shared} {shlex.join(words)} & p{i}=$!; " for i in (0, 1))
        return ["sh", "-c", start + "worst=0; for p in $p0 $p1; do wait $p || worst=$?; done; exit $worst"]

    def product(self, folder, out):
        return read(os.path.join(folder, self.result)) if self.result else out

    def learn(self):
        """Runs it without a fault, to learn how often each call site is reached, and what it writes."""
        folder = self.prepare()
        log = os.path.join(folder, "log")
        begin = time.monotonic()
        status, out, err = self.lab.run(self.command(), folder, {"LOOM_FAULT_LOG": log, "LOOM_FAULT_RANK": self.rank()})
        self.seconds = time.monotonic() - begin
        if status != 0 or not os.path.exists(log):
            raise SystemExit(f"faults: {self} does not run even without a fault: {err.strip()[-500:]}")
        self.expected = self.product(folder, out) if self.name in ("sample", "plot") else None
        self.note_sites(log)
        shutil.rmtree(folder)

    def note_sites(self, log):
        """Which call sites were reached, and how often; a process that becomes another, or is killed, tells no numbers."""
        counts = collections.Counter()
        for line in read(log).decode().splitlines():
            words = line.split()
            if words[0] in ("site", "count") and words[1] in ERRNOS:
                counts[words[1], words[2]] += int(words[3]) if words[0] == "count" else 0
        # Of what is linked into the program, libraries' own calls are left out.
        offsets = sorted({int(place.partition("+")[2], 16) for _, place in counts if place.startswith("program+")})
        lines = lines_of(self.lab.program(self.variant), offsets)
        for function, place in counts:
            module, _, offset = place.partition("+")
            self.lines[place] = lines[int(offset, 16)] if module == "program" else ("csrc/comm/mpi_library.c:0", ())
        self.counts = {key: max(n, 1) for key, n in counts.items() if self.lines[key[1]]}

    def sites(self):
        return {(function, self.lines[place][0]) for function, place in self.counts}

    def rank(self):
        return self.which or ("0" if self.variant == "ranks" else "none")

    def attempt(self, faults, nonzero=(2,), disturb=None, folder=None):
        """Runs it with faults; returns how it ended and whether anything was injected. Raises Lost."""
        folder = folder or self.prepare()
        log = os.path.join(folder, "log")
        try:
            faults = {"LOOM_FAULT_RANK": self.rank(), **faults, "LOOM_FAULT_LOG": log}
            if disturb:
                status, out, err = disturb(folder, faults)
            else:
                status, out, err = self.lab.run(self.command(), folder, faults)
            if self.variant == "ranks" or self.name == "tcp":
                self.lab.wait_for_all(folder)
                remove_orphans()
            fired = os.path.exists(log) and b"\nfired " in b"\n" + read(log)
            killed = status == -signal.SIGKILL and -signal.SIGKILL in nonzero
            end = "killed" if killed else self.lab.check_end(
                status, err, nonzero, self.variant == "ranks", 2 if self.name == "tcp" else 0
            )
            run = os.path.join(folder, "run")
            if self.trains and end == "went on" and not has_litter(run):
                self.lab.check_whole(self.variant, run)
            elif self.trains:
                self.lab.check_goes_on(self.variant, folder)
            elif end == "went on" and self.expected is not None and self.product(folder, out) != self.expected:
                raise Lost("ends with 0 and writes something else")
            return end, fired
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Special(Scenario):
    """One of scenarios.py's."""

    def __init__(self, lab, name, words, how):
        super().__init__(lab, name, "emulated" if how.get("emulated") else "fp32", words, rank=how.get("rank"))
        self.how = how
        self.outs = how.get("outs") or re.findall(r"--out (run|other)\b", words)
        self.first = how.get("first") and fault_at(lab.program(self.variant), how["first"])
        self.status = self.told = self.left = None

    def __str__(self):
        return self.name

    def shell(self, words, folder):
        environment = {**self.lab.environment, "GPTLOOM": self.lab.program(self.variant), "PRELOAD": self.lab.preload}
        subprocess.run(words, shell=True, check=True, cwd=folder, env=environment, capture_output=True)

    def prepare(self):
        folder = super().prepare()
        self.shell(self.how.get("setup", "true"), folder)
        return folder

    def command(self):
        if self.how.get("tcp"):
            return self.by_tcp()
        return ["bash", "-c", f"{self.how.get('wrapped', '')} {self.lab.program(self.variant)} {self.words}"]

    def go(self, folder, faults):
        environment = {"LOOM_FAULT_RANK": self.rank(), **self.how.get("env", {})}
        port = port_of_this_thread() if "MASTER_PORT" in environment else 0
        environment = {key: value.format(port=port, build=self.lab.build) for key, value in environment.items()}
        faults = {**environment, **faults}
        if self.first:
            faults["LOOM_FAULT"] = ",".join(filter(None, (self.first, faults.get("LOOM_FAULT"))))
        try:
            status, out, err = self.lab.run(self.command(), folder, faults, self.how.get("tty", False))
            return (status if status >= 0 else 128 - status), out, err
        finally:
            if self.how.get("ranks") or self.how.get("tcp"):
                self.lab.wait_for_all(folder)
            remove_orphans()
            self.shell(self.how.get("undo", "true"), folder)

    def go_on(self, folder):
        """What comes of what it has left: of each run the status of going on with it, and its bits and losses."""
        left = {}
        for out in self.outs:
            run = os.path.join(folder, out)
            begun = os.path.exists(os.path.join(run, "config.ini"))
            if not begun or self.how.get("goes_on", "") is None:
                continue
            words = self.how.get("goes_on", "").split()
            status, _, err = self.lab.run([self.lab.program(self.variant), "train", "--resume", "--out", out, "-q", *words], folder)
            if status not in (0, 2) or status == 2 and not err.startswith("gptloom: "):
                raise Lost(f"going on ends with {status}: {err.strip()[-300:]}")
            left[out] = (status, bits_of(run), losses_of(run)) if status == 0 else (status,)
        return left

    def learn(self):
        folder = self.prepare()
        log = os.path.join(folder, "log")
        begin = time.monotonic()
        self.status, _, err = self.go(folder, {"LOOM_FAULT_LOG": log})
        self.seconds = time.monotonic() - begin
        lines = [line for line in err.splitlines() if line.strip()]
        self.told = len(lines)
        chatty = self.how.get("chatty") or self.how.get("ranks")
        if self.status not in (0, 2, 130) or not os.path.exists(log) or not chatty and any(not line.startswith("gptloom: ") for line in lines):
            raise SystemExit(f"faults: {self} ends with {self.status} even without a fault: {err.strip()[-500:]}")
        self.note_sites(log)
        self.left = self.go_on(folder)
        shutil.rmtree(folder)

    def attempt(self, faults, nonzero=(2,), disturb=None, folder=None):
        folder = self.prepare()
        log = os.path.join(folder, "log")
        try:
            status, _, err = self.go(folder, {**faults, "LOOM_FAULT_LOG": log})
            fault = faults["LOOM_FAULT"].partition("@")[2].partition(":")[0]
            fired = any(line.startswith("fired ") and fault in line for line in read(log).decode().splitlines())
            end = self.check(status, err)
            left = self.go_on(folder)
            for out, known in left.items():
                was = self.left.get(out, known)
                if was != known:
                    raise Lost(f"{out} {'has other bits or losses' if was[0] == known[0] else f'goes on to end with {known[0]}'}")
            return end, fired
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check(self, status, err):
        lines = [line for line in err.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("gptloom: ")]
        plain = self.how.get("chatty") or self.how.get("ranks") or told == lines
        most = self.told + (2 if self.how.get("tcp") else 1)  # as Lab.check_end has it
        right = status in (0, 2, self.status, *self.how.get("ends", ())) and plain and len(told) <= most
        if not right or status == 2 and not told:
            raise Lost(f"ends with {status} and {len(lines)} lines: {' | '.join(lines)[-400:]}")
        return "told" if status else "went on"


class Report:
    """Adds up tries by kind of fault. Its clock starts when it is made."""

    def __init__(self, kinds):
        self.rows = collections.OrderedDict()
        self.lost, self.unended = [], []
        self.done = dict.fromkeys(kinds, 0)  # tries of each kind in which something was done
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def add(self, kind, row, end, did=True, what=None, why=None):
        with self.lock:
            self.rows.setdefault(row, collections.Counter())[end] += 1
            self.done[kind] += did
            if end == "lost":
                self.lost.append((row, what, why))

    def too_few(self):
        return [f"{count} of {kind}" for kind, count in self.done.items() if count < LEAST]

    def tries(self):
        return sum(sum(row.values()) for row in self.rows.values())

    def show(self):
        seen = collections.Counter()
        for row, what, why in self.lost:
            key = (row, re.sub(r"[0-9a-f]{6,}|\d+", "#", why)[:120])
            seen[key] += 1
            if seen[key] <= 2:
                print(f"LOST {row}: {what}\n     {why}")
        repeated = sum(max(0, n - 2) for n in seen.values())
        if repeated:
            print(f"     ... and {repeated} more like these")
        width = max((len(row) for row in self.rows), default=5)
        print(f"\n{'fault':{width}}  {'tries':>6}  {'survived':>8}  {'lost':>5}    of the survived: went on, told, killed")
        total = collections.Counter()
        for row, ends in self.rows.items():
            total.update(ends)
            self.show_row(row, ends, width)
        self.show_row("all", total, width)
        seconds = time.monotonic() - self.started
        print(f"\n{self.tries()} tries in {seconds:.0f} s; {len(self.lost)} lost")
        for what in self.unended:
            print(f"not ended in time, and not judged: {what}")

    @staticmethod
    def show_row(name, ends, width):
        tries, lost = sum(ends.values()), ends["lost"]
        print(
            f"{name:{width}}  {tries:6}  {tries - lost:8}  {lost:5}    "
            f"{ends['went on']:6} {ends['told']:6} {ends['killed']:6}"
        )


# ---------------------------------------------------------------------------------------------------------------- kinds
# Each yields tries without end, or until it has no more: (row of the table, description, function), which returns how it ended
# and whether anything was done to it.


def call_tries(scenarios, rng, coverage):
    """One call fails: each call site once, in one of the scenarios that reach it, then again with other errnos and at other
    times. What takes longer is taken more seldom."""
    found, errnos = collections.defaultdict(list), {}
    for scenario in scenarios:
        for function, place in scenario.counts:
            found[function, scenario.lines[place][0]].append((scenario, place))
    sites = sorted(found)
    while True:
        rng.shuffle(sites)
        for site in sites:
            function = site[0]
            ((scenario, place),) = rng.choices(found[site], [1 / (0.1 + s.seconds) for s, _ in found[site]])
            if not errnos.get(site):
                errnos[site] = rng.sample(ERRNOS[function], len(ERRNOS[function]))
            errno = errnos[site].pop()
            at = 1 if rng.random() < 0.3 else rng.randint(1, scenario.counts[function, place])
            fault = f"{function}@{place}:{errno}:{at}"

            def attempt(scenario=scenario, fault=fault, site=site):
                end, fired = scenario.attempt({"LOOM_FAULT": fault})
                if fired:
                    coverage.injected.add(site)
                return end, fired

            row = "others" if isinstance(scenario, Special) else scenario
            yield f"call fails: {row}", f"LOOM_FAULT={fault} ({site[1]}) {scenario}", attempt


def kill_tries(scenarios, rng):
    """SIGKILL before or after each change of a file, and at random moments, in turn."""
    stages = {scenario: [] for scenario in scenarios}
    weights = [{"fp32": 6, "emulated": 1, "ranks": 1}.get(scenario.variant, 2) for scenario in scenarios]
    while True:
        (scenario,) = rng.choices(scenarios, weights)
        nonzero = KILLED[scenario.variant == "ranks"]
        if rng.random() < 0.25:
            moment = rng.random() * 1.2
            yield (
                f"killed at a random moment: {scenario}",
                f"after {moment:.2f} of the time: {scenario}",
                lambda scenario=scenario, moment=moment: kill_at(scenario, moment),
            )
            continue
        if not stages[scenario]:
            changes = sum(n for (function, _), n in scenario.counts.items() if function in FILE_CHANGES)
            stages[scenario] = rng.sample(range(1, changes + 1), changes)
        faults = {"LOOM_FAULT": f"files:{rng.choice(['kill', 'killafter'])}:{stages[scenario].pop()}"}
        yield (
            f"killed at a change of a file: {scenario}",
            f"LOOM_FAULT={faults['LOOM_FAULT']} {scenario}",
            lambda scenario=scenario, faults=faults, nonzero=nonzero: scenario.attempt(faults, nonzero),
        )


FILE_CHANGES = set(
    "write pwrite fsync fdatasync ftruncate rename renameat2 link symlink mkdir unlink unlinkat rmdir remove nftw create "
    "fclose fflush fwrite fputs fputc fprintf".split()
)
KILLED = {False: (-signal.SIGKILL, 2), True: (2, 128 + signal.SIGKILL)}


def kill_at(scenario, moment):
    """Kills it from outside, when a part of the time has passed that it takes undisturbed."""
    def disturb(folder, faults):
        process = scenario.lab.start(scenario.command(), folder, faults)
        try:
            out, err = process.communicate(timeout=moment * scenario.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        return process.returncode, out, err.decode(errors="replace")

    end, _ = scenario.attempt({}, (-signal.SIGKILL,), disturb)
    return end, end == "killed"


FILESYSTEMS = ["nolinks", "nofsync", "nolocks", "noexchange", "nommap", "readonly", "full", "slow=2000", "nolinks,nofsync,nolocks,noexchange"]


def filesystem_tries(scenarios, rng):
    while True:
        for system in FILESYSTEMS:
            for scenario in scenarios:
                word = f"full={rng.randint(0, 80000)}" if system == "full" else system
                yield (
                    f"file system {system.partition('=')[0]}",
                    f"LOOM_FAULT_FS={word} {scenario}",
                    lambda scenario=scenario, word=word: (scenario.attempt({"LOOM_FAULT_FS": word})[0], True),
                )


def damage(path, how, rng):
    """Does something to a file, or puts something else in its place."""
    content = read(path) if os.path.isfile(path) else b""
    if how in ("cut", "flipped", "emptied"):
        if how == "cut":
            content = content[: rng.randrange(len(content))] if content else b""
        elif how == "emptied" or not content:
            content = b""
        else:
            at = rng.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        if os.path.islink(path):
            os.unlink(path)  # `latest`: a file in its place
        with open(path, "wb") as file:
            file.write(content)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    if how == "directory":
        os.mkdir(path)
    elif how == "dangling link":
        os.symlink("nothing-is-here", path)
    elif how == "link to itself":
        os.symlink(os.path.basename(path), path)
    elif how == "FIFO":
        os.mkfifo(path)
    elif how == "device":
        os.symlink("/dev/zero", path)


DAMAGES = ["cut", "flipped", "emptied", "removed", "directory", "dangling link", "link to itself", "FIFO", "device"]
# Users may edit these: what they then ask for is done.
EDITABLE = {"config.ini", "text.txt"}


def damage_tries(scenarios, rng):
    half = scenarios[0].lab.reference("fp32")["half"]
    names = sorted(files_of(half)) + ["checkpoints/latest", "../text.txt"]
    while True:
        rng.shuffle(names)
        for name in names:
            for how in rng.sample(DAMAGES, len(DAMAGES)):
                scenario, seed = rng.choice(scenarios), rng.getrandbits(32)
                yield (
                    f"file {how}",
                    f"{name} {how} (seed {seed}): {scenario}",
                    lambda scenario=scenario, name=name, how=how, seed=seed: (damaged(scenario, name, how, seed), True),
                )


def damaged(scenario, name, how, seed):
    """Runs with a damaged file. Then it is put back, and the run must be what it was, or have gone on."""
    lab = scenario.lab
    top = lab.folder()
    inner = os.path.join(top, "inner")
    os.mkdir(inner)
    shutil.copy(os.path.join(lab.where, "text.txt"), top)
    run = os.path.join(inner, "run")
    shutil.copytree(lab.reference("fp32")["half"], run, symlinks=True)
    path = os.path.normpath(os.path.join(run if name != "../text.txt" else inner, name))
    try:
        damage(path, how, random.Random(seed))
        status, _, err = lab.run(scenario.command(), inner)
        end = lab.check_end(status, err)
        if not scenario.trains or end == "went on":
            return end
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        source = os.path.join(lab.where, "text.txt") if name == "../text.txt" else os.path.join(lab.reference("fp32")["half"], name)
        if not os.path.isdir(os.path.dirname(path)):
            raise Lost(f"{os.path.dirname(name)} is gone")
        shutil.copy2(source, path, follow_symlinks=False)
        lab.check_goes_on("fp32", inner)
        return end
    finally:
        shutil.rmtree(top, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- coverage


class Coverage:
    """Call sites of ours, (function, source line): in the program, reached, made to fail."""

    def __init__(self):
        self.reached, self.injected = set(), set()

    def show(self, programs):
        """With programs: what they have beyond what was reached. Returns how many are missing."""
        around = {site: inside for program in programs for site, inside in sites_of(program).items()}
        there = self.reached.union(around)
        reasons = {site: reason_of(*site, around[site]) for site in there - self.reached}
        by_name = {site for site, reason in reasons.items() if reason}
        missing = there - self.reached - by_name
        parts = there, self.reached, self.injected, by_name, missing
        print(f"\n{'call sites of':22}  {'there':>6}  {'reached':>7}  {'failed':>6}  {'by name':>7}  {'missing':>7}")
        for function in [*sorted({site[0] for site in there}), None]:
            counts = [sum(function in (site[0], None) for site in sites) for sites in parts]
            print(f"{function or 'all':22}  {counts[0]:6}  {counts[1]:7}  {counts[2]:6}  {counts[3]:7}  {counts[4]:7}")
        for title, sites in (("not reached, by name", by_name), ("not reached", missing)):
            rows = collections.defaultdict(list)
            for site in sorted(sites):
                function, line = site
                rows[line.partition(":")[0], reasons[site]].append(f"{function}:{line.partition(':')[2]}")
            if rows:
                print(f"\n{title}:")
            for (source, reason), calls in sorted(rows.items(), key=str):
                print(f"    {source}: {' '.join(calls)}{f'  ({reason})' if reason else ''}")
        return len(missing)


def reason_of(function, line, inside):
    """Why a call site cannot be reached here, as scenarios.py has it; None if it says nothing."""
    file, _, number = line.partition(":")
    for where, name, call, reason in NOT_HERE:
        if where == file and (not name or name in inside) and call in ("", function):
            return reason
    with open(os.path.join(ROOT, file), encoding="utf-8") as source:
        text = source.read().splitlines()[int(number) - 1]
    return "a message to stderr never fails" if re.search(r"\bf(printf|puts|putc)\(.*\bstderr\b", text) else None


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def lines_of(program, offsets):
    """The source line of each return address, that is of the call before it, and the C functions around it, those that it is
    inlined into last. None where the source is not ours."""
    text = "".join(f"{offset - 1:#x}\n" for offset in offsets)
    command = ["addr2line", "-a", "-i", "-f", "-e", program]
    out = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    found = {}
    for told in re.split(r"^0x", out, flags=re.MULTILINE)[1:]:
        offset, *told = told.splitlines()
        source = re.search(r"(?:^|/)((?:csrc|train|kernels)/[^ ]*:\d+)", told[1])
        found[int(offset, 16) + 1] = source and (source[1], tuple(name.partition(".")[0] for name in told[::2]))
    return found


@functools.lru_cache
def places_of(program):
    """All call sites of a program, by return address: (function, source line, C function)."""
    command = ["objdump", "-d", "--no-show-raw-insn", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    other_names = {"__getdelim": "getline", "accept4": "accept", "putc": "fputc"}
    places, function = {}, None
    for line in out.splitlines():
        address = re.match(r" +([0-9a-f]+):", line)
        if address and function:
            places[int(address[1], 16)] = function
        called = re.search(r"\bcall +[0-9a-f]+ <(\w+)@plt>", line)
        function = called and other_names.get(called[1], called[1])
        function = function if function in ERRNOS or function == "pthread_cond_timedwait" else None
    lines = lines_of(program, sorted(places))
    return {offset: (function, *lines[offset]) for offset, function in places.items() if lines[offset]}


def sites_of(program):
    """The same by (function, source line): the C functions around it."""
    return {(function, line): inside for function, line, inside in places_of(program).values() if function in ERRNOS}


def fault_at(program, words):
    """A fault at all places of one call in a C function: "FUNCTION[#K] FILE:C_FUNCTION WHAT[:N]", several with commas; #K: at
    the Kth of its lines only."""
    faults = []
    for word in words.split(","):
        if " " not in word:  # at whichever place comes to the Nth call
            faults.append(word)
            continue
        function, where, what = word.split()
        function, _, nth = function.partition("#")
        file, _, name = where.partition(":")
        found = {
            offset: (name != inside[0], int(line.rpartition(":")[2]))
            for offset, (called, line, inside) in places_of(program).items()
            if called == function and line.startswith(file + ":") and name in inside
        }
        found = {offset: line for offset, (further, line) in found.items() if further == min(found.values())[0]}
        lines = sorted(set(found.values()))
        if len(lines) < int(nth or 1):
            raise SystemExit(f"faults: there is no {word} in {program}")
        chosen = [offset for offset, line in found.items() if not nth or line == lines[int(nth) - 1]]
        faults += [f"{function}@program+{offset:#x}:{what if ':' in what else what + ':1'}" for offset in chosen]
    return ",".join(faults)


# ----------------------------------------------------------------------------------------------------------------- main


def interleave(kinds, tries):
    """So many tries of the kinds, by their shares, each with its kind."""
    done = [0] * len(kinds)
    for _ in range(tries):
        i = min(range(len(kinds)), key=lambda k: (done[k] + 1) / kinds[k][0])
        done[i] += 1
        yield kinds[i][1], *next(kinds[i][2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--tries", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of tries: then none is begun")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="kill,calls,damage,filesystems")
    parser.add_argument("--scenarios", default=",".join([*ONE_RUN, *"aloud models devices parity tcp".split(), *(row[0] for row in SCENARIOS)]),
                        help="of calls; --short takes the first six")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of kill")
    parser.add_argument("--short", action="store_true", help="one variant, no list of what is not reached")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    coverage = Coverage()
    with tempfile.TemporaryDirectory(prefix="gptloom-faults-") as where:
        lab = Lab(arguments.build, where)
        every = [
            Scenario(lab, "run"),
            Scenario(lab, "resume"),
            Scenario(lab, "sample", words="sample --from run --prompt a --tokens 4 --threads 1".split()),
            Scenario(lab, "plan", words="plan run --batch 2 --no-measure".split()),
            Scenario(lab, "plot", words=["plot", "run"], result="run/loss.svg"),
            Scenario(lab, "info", words=["info", "run"]),
            Scenario(lab, "aloud", words=["train", "--data", "../text.txt", "--out", "other", *TINY[:-1], *RHYTHM]),
            Scenario(lab, "models", words=["info"]),
            Scenario(lab, "devices", words=["devices"]),
            Scenario(lab, "parity", words="parity --op add --threads 1".split()),
            *(Scenario(lab, "tcp", "emulated", words=[], rank=rank) for rank in "01"),
            *(Scenario(lab, "run", "ranks", rank=rank) for rank in ("none", "0", "1")),
        ]
        if not arguments.short:
            may = [row for row in SCENARIOS if os.geteuid() == 0 or not row[2].get("root")]
            every += [Special(lab, *row) for row in may]
        names = arguments.scenarios.split(",")[: 6 if arguments.short else None]
        scenarios = [s for s in every if s.name in names and not (arguments.short and s.variant != "fp32")]
        variants = ["fp32"] if arguments.short else arguments.variants.split(",")
        trained = [Scenario(lab, name, variant) for variant in variants for name in ("run", "resume")]
        only = arguments.only.split(",")
        for scenario in scenarios + (trained if "kill" in only else []):
            scenario.learn()
            coverage.reached |= scenario.sites()
        kinds = [
            (4, "calls", call_tries(scenarios, rng, coverage)),
            (2, "kill", kill_tries(trained, rng)),
            (1.5, "damage", damage_tries([s for s in scenarios if s.name in ONE_RUN[1:]] or scenarios, rng)),
            (0.5, "filesystems", filesystem_tries([s for s in scenarios if s.name in ONE_RUN and not s.which], rng)),
        ]
        kinds = [kind for kind in kinds if kind[1] in only]
        report = Report([name for _, name, _ in kinds])
        over = report.started + arguments.seconds
        lab.end = over + TIME_TO_END

        def attempt(kind, row, what, function):
            if time.monotonic() > (over if report.done[kind] >= LEAST else lab.end):
                return
            try:
                report.add(kind, row, *function())
            except Unended:
                report.unended.append(what)
            except Lost as lost:
                report.add(kind, row, "lost", True, what, str(lost))
            except (OSError, ValueError, KeyError) as error:
                report.add(kind, row, "lost", True, what, f"cannot be looked at: {error!r}")

        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for future in [pool.submit(attempt, *each) for each in interleave(kinds, arguments.tries)]:
                future.result()
    report.show()
    missing = 0
    if "calls" in only:
        missing = coverage.show([] if arguments.short else [lab.program("fp32"), lab.program("emulated")])
    chosen = any(getattr(arguments, name) != parser.get_default(name) for name in ("only", "scenarios", "variants"))
    wrong = [f"{too_few}: fewer than {LEAST} tries have done anything" for too_few in report.too_few()]
    if missing and not chosen and os.geteuid() == 0:
        wrong.append(f"{missing} call sites are neither reached nor named in scenarios.py")
    for line in wrong:
        print(f"faults: {line}")
    return 1 if report.lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
