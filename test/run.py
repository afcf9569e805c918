#!/usr/bin/env python3
"""Runs GoogleTest programs, two more at once than there are processors, as some only wait, and adds up what they say.

    test/run.py [--logs DIR] [--timeout SECONDS] [--jobs N] PROGRAM[:SOURCE][=FILTER]...

With a SOURCE only the tests of that file are run (test_base is those of test/test_base.cpp), under the name of the program
that has these alone. With a FILTER only the tests whose names match it are run, as GoogleTest's --gtest_filter says. Each
gets a line with its counts and its time, in the order in which they were given; what it prints goes to a log. Of failures
the part of the log is shown; of skips the reason. Those that took longest the last time, as the logs say, begin first;
where there are no logs, those that are given first. A program that crashes, runs out of time, or ends badly after good
tests (a leak, say) counts as a failure, and so do files that are left in TMPDIR, of which each has its own, or in
/dev/shm (--shared-memory names another folder). The last line is "N passed, N failed, N skipped"; the status is 1 if any
failed or nothing was run.
"""

import argparse
import concurrent.futures
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

LINES_SHOWN = 60
RUNNING = set()  # processes, each the leader of a group
ENDING = []  # not empty once all that runs is to end


class Outcome:
    """What a program's tests came to: names of passed ones; (name, what happened) of the others."""

    def __init__(self):
        self.passed, self.failed, self.skipped = [], [], []

    def counts(self):
        return f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"


def log_of_test(log, name):
    """The part of a log that belongs to a test, without the lines that only begin and end it."""
    begin = log.rfind(f"[ RUN      ] {name}\n")
    if begin < 0:
        return ""
    begin = log.index("\n", begin) + 1
    end = re.compile(rf"^\[(  FAILED  |  SKIPPED |       OK )\] {re.escape(name)}\b", re.M).search(log, begin)
    return log[begin : end.start() if end else len(log)].rstrip()


def read_report(path, log, outcome):
    """Fills the outcome from GoogleTest's XML report; raises an error if there is none or it is not whole."""
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None:
            outcome.failed.append((name, log_of_test(log, name)))
        elif case.get("status") == "notrun":
            if case.get("result") == "suppressed" and "DISABLED_" in name:
                outcome.skipped.append((name, "is disabled in its source"))
        elif skip is not None or case.get("result") == "skipped":
            # The message begins with the place; the reason, which the test gives, follows.
            lines = [line for line in ((skip is not None and skip.get("message")) or "").splitlines() if line.strip()]
            reason = " ".join(lines[1:] or lines) or log_of_test(log, name).replace("\n", " ") or "gives no reason"
            outcome.skipped.append((name, reason))
        else:
            outcome.passed.append(name)


def read_broken_log(log, what, outcome):
    """Fills the outcome from the log of a program that did not live to write its report: the test it was in failed."""
    ended = {}
    for verdict, name in re.findall(r"^\[ +(OK|FAILED|SKIPPED) +\] ([^\s,]+).*\(\d+ ms\)$", log, re.M):
        ended[name] = verdict
    for name, verdict in ended.items():
        if verdict == "OK":
            outcome.passed.append(name)
        elif verdict == "FAILED":
            outcome.failed.append((name, log_of_test(log, name)))
        else:
            outcome.skipped.append((name, log_of_test(log, name).replace("\n", " ") or "gives no reason"))
    begun = re.findall(r"^\[ RUN      \] (\S+)$", log, re.M)
    if begun and begun[-1] not in ended:
        outcome.failed.append((begun[-1], f"{log_of_test(log, begun[-1])}\n({what})".strip()))
    else:
        outcome.failed.append(("the program itself", f"{log.rstrip()}\n({what})".strip()))


def environment(test, temporary):
    """A test of BUILD/test tries the program of the same build, BUILD/gptloom. Threads of programs that run beside each
    other wait for each other without keeping a processor."""
    program = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(test))), "gptloom")
    named = {"GPTLOOM": program} if os.path.exists(program) else {}
    return {"OMP_WAIT_POLICY": "passive", **named, **os.environ, "TMPDIR": temporary}


def end_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(command, log_path, timeout, temporary):
    """Runs a program with its output in a file; returns None if it ended well, else what happened, in words."""
    with open(log_path, "wb") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(command[0], temporary),
            )
        except OSError as error:
            return f"it could not be started: {error.strerror}"
        RUNNING.add(process)
        if ENDING:
            end_group(process)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"it was ended after {timeout:g} s"
        finally:
            # Whatever the program left running goes with it.
            end_group(process)
            RUNNING.discard(process)
            process.wait()
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return None if status == 0 else f"it ended with status {status}"


def left_in(temporary):
    """What a program left in its TMPDIR, in words; None if that is nothing."""
    left = sorted(os.listdir(temporary))
    return "it left " + ", ".join(left) + " in TMPDIR" if left else None


def shared_memory(folder):
    """Files in that folder that ranks share memory by and no process has mapped: once made, those would stay. What other
    programs keep there is not the tests'."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    files = [os.path.join(folder, name) for name in names if re.match("gptloom|vader|ompi|nccl", name)]
    mine = {file for file in files if os.path.isfile(file) and os.stat(file).st_uid == os.getuid()}
    for maps in glob.glob("/proc/[0-9]*/maps") if mine else []:
        try:
            with open(maps, encoding="utf-8", errors="replace") as lines:
                mine -= {line.split(None, 5)[5].rstrip("\n") for line in lines if f"{folder}/" in line}
        except OSError:
            pass  # it ended, or is another user's
    return mine


def default_signals():
    """What was ignored from the start, as by nohup, is ignored here, but not by the tests, which send some of these: what
    has a handler is back at its default in a program that is started."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
        elif number == signal.SIGINT:
            signal.signal(number, interrupt)


def interrupt(number, frame):
    """Once: what asks again, as timeout does of its group, does not disturb ending what runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def name_of(program):
    """A program, or what has the tests of one of its sources alone."""
    path, _, source = program.partition(":")
    return os.path.join(os.path.dirname(path), source) if source else path


def filter_of_source(path, source, listing):
    """The filter of the tests of a source, of which a program is to have some."""
    subprocess.run(
        [os.path.abspath(path), "--gtest_list_tests", f"--gtest_output=json:{listing}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    with open(listing, encoding="utf-8") as file:
        suites = json.load(file)["testsuites"]
    os.remove(listing)
    names = []
    for suite in suites:
        tests = [t["name"] for t in suite["testsuite"] if os.path.splitext(os.path.basename(t["file"]))[0] == source]
        whole = len(tests) == len(suite["testsuite"])
        names += [f"{suite['name']}.*"] if tests and whole else [f"{suite['name']}.{test}" for test in tests]
    if not names:
        raise ValueError(f"it has no tests of {source}")
    return ":".join(names)


def paths_in(logs, program):
    """Where a program's log and its report are."""
    stem = os.path.join(logs, os.path.relpath(name_of(program)).replace("../", "").replace("/", "-"))
    return f"{stem}.log", f"{stem}.xml"


def seconds_before(argument, logs):
    """What a program took when it was last run; without bound where that is not known."""
    try:
        return float(ElementTree.parse(paths_in(logs, argument.partition("=")[0])[1]).getroot().get("time"))
    except (OSError, ElementTree.ParseError, TypeError, ValueError):
        return float("inf")


def run_program(program, only, logs, timeout, temporary):
    """Runs one program, or what the filter `only` leaves of it; returns its outcome, the path of its log, and how long it
    took."""
    begin = time.monotonic()
    log_path, report_path = paths_in(logs, program)
    if os.path.exists(report_path):
        os.remove(report_path)
    path, _, source = program.partition(":")
    os.mkdir(temporary)
    outcome = Outcome()
    if source:
        try:
            only = filter_of_source(path, source, f"{temporary}.json")
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            outcome.failed.append(("the program itself", f"its tests are not known: {error}"))
            return outcome, log_path, time.monotonic() - begin
    command = [os.path.abspath(path), f"--gtest_output=xml:{os.path.abspath(report_path)}", "--gtest_color=no"]
    if only:
        command.append(f"--gtest_filter={only}")
    trouble = run(command, log_path, timeout, temporary) or left_in(temporary)
    with open(log_path, encoding="utf-8", errors="replace") as file:
        log = file.read()
    try:
        read_report(report_path, log, outcome)
    except (OSError, ElementTree.ParseError):
        outcome = Outcome()
        read_broken_log(log, trouble or "it wrote no report", outcome)
    else:
        if trouble and not outcome.failed:
            outcome.failed.append(("the program itself", f"{log.rstrip()}\n({trouble}, after its tests)"))
    return outcome, log_path, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description="Runs GoogleTest programs and adds up their counts.")
    parser.add_argument("--logs", default="build/test/logs", metavar="DIR", help="where logs go (%(default)s)")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="of each program (%(default)s)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)) + 2, metavar="N", help="at once (%(default)s)")
    parser.add_argument("--shared-memory", default="/dev/shm", metavar="DIR", help="where no file may be left (%(default)s)")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM[=FILTER]")
    arguments = parser.parse_args()
    os.makedirs(arguments.logs, exist_ok=True)
    default_signals()
    temporary = tempfile.mkdtemp(prefix="gptloom-tests-")
    os.chmod(temporary, 0o755)  # for tests that go on as another user
    pool = concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs))
    try:
        return run_all(arguments, temporary, pool)
    except KeyboardInterrupt:
        ENDING.append(True)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            end_group(process)
        raise
    finally:
        pool.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def run_all(arguments, temporary, pool):
    """Runs the programs, each with a TMPDIR of its own in that folder; returns the exit status."""
    total = Outcome()
    before = shared_memory(arguments.shared_memory)
    width = max((len(name_of(argument)) for argument in arguments.programs), default=0)
    longest_first = sorted(arguments.programs, key=lambda argument: -seconds_before(argument, arguments.logs))
    running = {}
    for number, argument in enumerate(longest_first):
        program, _, only = argument.partition("=")
        own = os.path.join(temporary, str(number))
        running[argument] = pool.submit(run_program, program, only, arguments.logs, arguments.timeout, own)
    for argument in arguments.programs:
        # Python does not notice a signal that comes just as a wait begins until that wait ends.
        while not running[argument].done():
            concurrent.futures.wait([running[argument]], timeout=0.5)
        outcome, log_path, seconds = running[argument].result()
        program, _, only = argument.partition("=")
        program = name_of(program)
        shown = f"{program}={only}" if only else program
        print(f"{shown:{width}}  {outcome.counts():38}  {seconds:6.1f} s", flush=True)
        for name, part in outcome.failed:
            lines = part.splitlines()
            if len(lines) > LINES_SHOWN:
                lines = [f"... (all of it in {log_path})"] + lines[-LINES_SHOWN:]
            print(f"    FAILED {name}", *(f"    | {line}" for line in lines), sep="\n", flush=True)
        for kind in ("passed", "failed", "skipped"):
            getattr(total, kind).extend((program, test) for test in getattr(outcome, kind))

    left = sorted(shared_memory(arguments.shared_memory) - before)
    if left:
        total.failed.append(("all of them", ("left files", "")))
        print(f"    FAILED: these were left: {', '.join(left)}")
    if total.skipped:
        print("\nSkipped:")
        for program, (name, reason) in total.skipped:
            print(f"    {os.path.basename(program)}: {name}: {reason}")
    if total.failed:
        print("\nFailed:")
        for program, (name, _) in total.failed:
            print(f"    {os.path.basename(program)}: {name}")
    print(f"\n{total.counts()}", flush=True)
    return 1 if total.failed or not (total.passed or total.skipped) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
