#!/usr/bin/env python3
"""A rank's training step on two timelines, computing and communicating, as csrc/parallel and csrc/model run it.

    echo '[{"ranks": 8, "zero": 1, ...}]' | dev/simulate_step.py     a list of cases (Case, below) -> a list of results

All ranks are alike, so one is simulated. Operations of communication run in the order in which they were put in, each
as soon as the one before has ended and what it reads is computed; computing goes on beside them until it needs a
result. What comes out is a step among many, not the first: the last one's gathers of weights reach into its forward.

Two things are simplified: gradients of the embeddings are ready with the last block's, and the work at both ends of the
model (most of it the classifier's) is done at once, between forward and backward.
"""

import dataclasses
import json
import sys
from collections import deque


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way in which an operation can go around the ring of ranks: seconds to begin with, seconds a hop within a node
    and between nodes, and the share of the links' bandwidth that it reaches."""

    base: float = 0.0
    near: float = 0.0
    far: float = 0.0
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Links:
    """What ranks are connected by. Bandwidths are bytes/s that a rank sends while it receives as much: `near` within a
    node, a number or one for each kind of operation; `far` between nodes, of each rank's adapter, all of which a node's
    rings share."""

    near: float | dict[str, float]
    far: float = float("inf")
    per_node: int = 8
    protocols: tuple[Protocol, ...] = (Protocol(),)

    def ring(self, ranks: int, kind: str = "") -> float:
        """Bytes/s that a rank sends: every ring passes every rank, and leaves each node once."""
        near = self.near[kind] if isinstance(self.near, dict) else self.near
        return min(near, self.far * self.per_node) if ranks > self.per_node else near

    def seconds(self, kind: str, ranks: int, wire: float) -> float:
        """Of an operation in which each rank sends `wire` bytes: by the protocol that takes the least."""
        nodes = -(-ranks // self.per_node)
        turns = 2 if kind == "all_reduce" else 1
        hops, far_hops = turns * (ranks - 1), turns * (nodes - 1)
        bandwidth = self.ring(ranks, kind)
        return min(
            p.base + (hops - far_hops) * p.near + far_hops * p.far + wire / (bandwidth * p.share)
            for p in self.protocols
        )


@dataclasses.dataclass(frozen=True)
class Case:
    ranks: int
    zero: int
    micro_batches: int  # of a rank in a step
    sequences: int  # of a rank in a step
    elements: list[int]  # of each bucket: the embeddings', each block's, the last layernorm's
    squares: int  # sums of squares that are taken of all buckets
    links: Links
    ends: float  # seconds: of a micro-batch, embedding, classifier and loss, both ways
    forward: float  # of a block
    backward: float
    update: float  # of an element
    addition: float = 0.0  # of an element: one gradient to another
    deterministic: bool = False
    gradient_bytes: int = 4
    weight_bytes: int = 4
    # The share of computing's speed that communicating takes away while it goes on: 1 where one processor does both.
    steals: float = 0.0


class Timelines:
    """Computing is at `now`; communicating has been given work until `free`."""

    def __init__(self, case: Case):
        self.case = case
        self.now = self.free = 0.0
        self.ahead: deque[tuple[float, float]] = deque()  # operations that computing may still run beside
        self.operations, self.handed, self.wire, self.busy, self.computed = 0, 0, 0.0, 0.0, 0.0

    def compute(self, seconds: float) -> None:
        """Goes on by so much work, which takes longer beside operations that take a share of the speed."""
        self.computed += seconds
        speed = 1 - self.case.steals
        while seconds > 0 and self.ahead and speed < 1:
            begin, end = self.ahead[0]
            alone = min(seconds, max(0.0, begin - self.now))
            self.now += alone
            seconds -= alone
            beside = min(seconds, speed * max(0.0, end - self.now)) if seconds > 0 else 0.0
            seconds -= beside
            if seconds > 0:
                self.now = max(self.now, end)
                self.ahead.popleft()
            elif beside > 0:
                self.now += beside / speed
        self.now += max(0.0, seconds)

    def put(self, kind: str, whole: int) -> float:
        """Puts an operation in, of so many bytes that are whole on every rank before or after it; when it will end."""
        ranks = self.case.ranks
        self.handed += whole if kind in ("all_reduce", "reduce_scatter") else whole // ranks
        wire = whole / ranks * {"all_reduce": 2 * (ranks - 1), "exchange": 1}.get(kind, ranks - 1)
        begin = max(self.now, self.free)
        self.free = begin + self.case.links.seconds(kind, ranks, wire)
        self.ahead.append((begin, self.free))
        self.operations += 1
        self.wire += wire
        self.busy += self.free - begin
        return self.free

    def wait(self, end: float) -> None:
        self.now = max(self.now, end)


class Rank:
    """The hooks of csrc/parallel, by their names there."""

    def __init__(self, case: Case):
        self.case = case
        self.time = Timelines(case)
        self.last = len(case.elements) - 1  # bucket
        self.alone = case.ranks == 1
        self.each = case.zero >= 2 and not case.deterministic and not self.alone  # micro-batch is reduced by itself
        self.in_slot: dict[int, int] = {}  # slot -> bucket whose reduction uses it
        self.reduction: dict[int, float] = {}  # bucket -> when it ends
        self.adds: dict[int, bool] = {}  # bucket -> whether what arrives is to be added to the share
        self.returning: dict[int, float] = {}
        self.gathering: dict[int, float] = {}
        self.gathered: dict[int, int] = {}  # slot -> bucket whose weights are there
        self.micro_batch = 0

    def slot(self, bucket: int) -> int:
        return 0 if bucket == 0 else 1 if bucket == self.last else 2 + (bucket - 1) % 2

    def share(self, bucket: int) -> int:
        return self.case.elements[bucket] // self.case.ranks

    def add(self, elements: int) -> None:
        self.time.compute(elements * self.case.addition)

    # ------------------------------------------------------------------------------------------------ gather.c: weights

    def passing(self, bucket: int) -> bool:
        return self.case.zero >= 3 and 0 < bucket < self.last

    def gather(self, bucket: int) -> None:
        self.gathering[bucket] = self.time.put("all_gather", self.case.elements[bucket] * self.case.weight_bytes)

    def fetch(self, bucket: int) -> None:
        if self.gathered.get(self.slot(bucket)) != bucket:
            self.gathered[self.slot(bucket)] = bucket
            self.gather(bucket)

    def before_weights(self, bucket: int, following: int | None = None) -> None:
        if self.case.zero == 0 or self.alone:
            return
        if self.passing(bucket):
            self.fetch(bucket)
        self.time.wait(self.gathering.pop(bucket, 0.0))
        if following is not None and self.passing(following) and self.slot(following) != self.slot(bucket):
            self.fetch(following)

    def after_update(self, bucket: int) -> None:
        if self.case.zero == 0 or self.alone:
            return
        if not self.passing(bucket):
            self.gather(bucket)
        elif self.gathered.get(self.slot(bucket)) == bucket:
            del self.gathered[self.slot(bucket)]

    def after_sums(self) -> None:
        if self.alone:
            return
        end = self.time.put("all_gather", 4 * self.case.sequences * self.case.ranks)
        if self.case.zero >= 1:
            end = self.time.put("all_reduce", 4 * self.case.squares)
        self.time.wait(end)

    # ------------------------------------------------------------------------------------- reduce.c, tree.c: gradients

    def finish(self, bucket: int) -> None:
        if bucket not in self.reduction:
            return
        self.time.wait(self.reduction.pop(bucket))
        if self.in_slot.get(self.slot(bucket)) == bucket:
            del self.in_slot[self.slot(bucket)]
        if self.case.deterministic:
            self.add((self.case.ranks - 1) * self.share(bucket))
            if self.case.zero == 0:
                whole = self.case.elements[bucket] * self.case.gradient_bytes
                self.returning[bucket] = self.time.put("all_gather", whole)
        elif self.adds.pop(bucket, False):
            self.add(self.share(bucket))

    def take_slot(self, bucket: int) -> None:
        if self.slot(bucket) in self.in_slot:
            self.finish(self.in_slot[self.slot(bucket)])
        self.in_slot[self.slot(bucket)] = bucket

    def before_gradient(self, bucket: int) -> None:
        if self.each:
            self.take_slot(bucket)

    def carry(self, bucket: int) -> None:
        """Into the tree of the rank's own micro-batches: an addition where two halves are complete; to wait there, a copy."""
        i, elements = self.micro_batch, self.case.elements[bucket]
        while i & 1:
            self.add(elements)
            i >>= 1
        if i == self.micro_batch and i + 1 < self.case.micro_batches:
            self.add(2 * elements // 3)  # a copy moves two thirds of what an addition does

    def after_gradient(self, bucket: int) -> None:
        last = self.micro_batch + 1 == self.case.micro_batches
        whole = self.case.elements[bucket] * self.case.gradient_bytes
        if self.case.deterministic:
            self.carry(bucket)
        if self.alone or not (last or self.each):
            return
        self.adds[bucket] = self.each and self.micro_batch > 0
        if self.case.deterministic:
            self.take_slot(bucket)
            for _ in range(self.case.ranks - 1):
                self.reduction[bucket] = self.time.put("exchange", whole)
        else:
            self.reduction[bucket] = self.time.put("reduce_scatter" if self.case.zero else "all_reduce", whole)

    # ------------------------------------------------------------------------------------------- the model and the step

    def forward(self) -> None:
        self.before_weights(0, 1)
        for bucket in range(1, self.last):
            self.before_weights(bucket, bucket + 1 if bucket + 1 < self.last else None)
            self.time.compute(self.case.forward)
        self.before_weights(self.last)

    def backward(self) -> None:
        self.before_weights(0)
        self.before_gradient(0)
        self.time.compute(self.case.ends)
        self.before_gradient(self.last)
        self.after_gradient(self.last)
        for bucket in range(self.last - 1, 0, -1):
            self.before_weights(bucket, bucket - 1 if bucket > 1 else None)
            self.before_gradient(bucket)
            self.time.compute(self.case.backward)
            self.after_gradient(bucket)
        self.after_gradient(0)

    def update(self) -> None:
        for bucket in range(self.last, -1, -1):
            self.finish(bucket)
        for bucket in range(self.last, -1, -1):
            self.time.wait(self.returning.pop(bucket, 0.0))
        self.after_sums()
        for bucket, elements in enumerate(self.case.elements):
            self.time.compute((self.share(bucket) if self.case.zero >= 1 else elements) * self.case.update)
            self.after_update(bucket)

    def exchange_status(self) -> None:
        """The status of each rank in a step: two numbers."""
        if not self.alone:
            self.time.wait(self.time.put("all_gather", 16 * self.case.ranks))

    def step(self) -> None:
        for self.micro_batch in range(self.case.micro_batches):
            self.forward()
            self.backward()
        self.exchange_status()
        self.update()


def simulate(case: Case) -> dict:
    """A step's seconds: all of it; `computed`, of its own work; `exposed`, the difference, which is what communicating
    costs; `busy`, what communicating takes by itself. `handed` is what the rank's metrics call comm_bytes; `wire`, the
    bytes that it sends if each operation goes around a ring."""
    rank = Rank(case)
    time = rank.time
    names = ("now", "computed", "busy", "operations", "handed", "wire")
    # In the first step no weights are on their way; the second begins as all others do.
    rank.step()
    rank.step()
    before = {name: getattr(time, name) for name in names}
    rank.step()
    of = {name: getattr(time, name) - before[name] for name in names}
    return {
        "seconds": of["now"],
        "computed": of["computed"],
        "exposed": of["now"] - of["computed"],
        "busy": of["busy"],
        "operations": of["operations"],
        "handed": of["handed"],
        "wire": of["wire"],
    }


def read_case(fields: dict) -> Case:
    links = dict(fields["links"])
    if "protocols" in links:
        links["protocols"] = tuple(Protocol(**p) for p in links["protocols"])
    return Case(**{**fields, "links": Links(**links)})


if __name__ == "__main__":
    print(json.dumps([simulate(read_case(fields)) for fields in json.load(sys.stdin)]))
