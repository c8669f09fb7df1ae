"""Ray Serve on many machines, simulated from measured times: ``python -m benchmarks.cluster [--measure] [--check]``.

Where do the proxy, the router and the network end? The simulation has each part of a request as a process that does one
thing at a time (Python's lock) on the cores of its machine: the client or the caller of a handle, the proxy, the
replica; and devices and network cards, which need no core. Its inputs are the processor time of each part and the
waiting in between, measured with one replica (``--measure``, needs Ray), and the number of cores.

``--check`` compares it with 1, 2 and 4 real replicas on this machine, over a handle and over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import simpy

from .report import Row, show, write

DEVICE_MS = 20.0
MOST_WAITING = 64
"""Requests that a proxy or a caller has under way: enough to keep it busy."""


class Costs(NamedTuple):
    """What one request costs: milliseconds of processor time of each part, and of waiting."""

    caller: float
    """The process that asks: over a handle it has the router; over HTTP it is no part of the cluster."""
    proxy: float
    """0 over a handle."""
    replica: float
    rest: float
    """Of Ray's other processes; a request does not wait for them."""
    waiting: float
    """Of a lonely request that is not processor time: messages and wake-ups."""


MEASURED = {
    "handle": Costs(caller=5.00, proxy=0.0, replica=6.10, rest=0.30, waiting=0.0),
    "http": Costs(caller=3.07, proxy=9.11, replica=8.60, rest=0.10, waiting=0.0),
}
"""Medians on a slow virtual machine with two cores and nothing else to do (x86-64, Python 3.11, Ray 2.60)."""


@dataclass
class Cluster:
    """What is simulated."""

    costs: Costs
    replicas: int
    device_ms: float = DEVICE_MS
    callers: int = 1
    """Processes that route: callers of handles, or proxies."""
    replicas_per_node: int = 8
    """The callers or proxies are on these nodes too, in turns."""
    cores: float = 64
    """Of each node."""
    has_clients: bool = False
    """The clients of HTTP are on the nodes too, as in a check on one machine."""
    is_local: bool = False
    """A caller prefers replicas of its own node, as proxies do."""
    bytes: int = 0
    """Of a request and its response."""
    network_gbps: float = 25.0
    """Of the card of each node."""
    max_ongoing: int = 64
    seconds: float = 1.0


@dataclass
class Found:
    """What the simulation finds."""

    rate: float
    """Requests per second."""
    latency_ms: list[float]
    busy: dict[str, float] = field(default_factory=dict)
    """The part of the time in which each kind of part is busy; that of the busiest of its kind."""

    @property
    def limit(self) -> str:
        """The part that is busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


class Part:
    """A process, a device or a network card: one thing at a time."""

    def __init__(self, env: Any, kind: str, cores: Any = None) -> None:
        self.kind = kind
        self.busy = 0.0
        self._env = env
        self._turn = simpy.Resource(env)
        self._cores = cores

    def work(self, ms: float) -> Iterator[Any]:
        """Wait for the turn, and for a core where it needs one, and be busy."""
        if ms <= 0:
            return
        with self._turn.request() as turn:
            yield turn
            if self._cores is None:
                yield self._env.timeout(ms)
            else:
                with self._cores.request() as core:
                    yield core
                    yield self._env.timeout(ms)
            self.busy += ms


@dataclass
class Node:
    cores: simpy.Resource
    card: Part
    rest: Part
    client: Part


@dataclass
class Replica:
    node: Node
    process: Part
    device: Part
    ongoing: int = 0


@dataclass
class Caller:
    """A process that routes. It knows of each replica what the newest response said and what it sent since."""

    node: Node
    process: Part
    known: dict[int, int] = field(default_factory=dict)


class Simulation:
    """A run of a cluster, in milliseconds."""

    def __init__(self, cluster: Cluster, seed: int = 1) -> None:
        self.cluster = cluster
        self.env = simpy.Environment()
        self._random = random.Random(seed)
        env, count = self.env, -(-cluster.replicas // cluster.replicas_per_node)
        # A part of a core, where other programs have the rest, makes all work slower.
        whole = max(1, round(cluster.cores))
        self._slower = whole / cluster.cores
        self.nodes = []
        for _ in range(count):
            cores = simpy.Resource(env, whole)
            self.nodes.append(Node(cores, Part(env, "network"), Part(env, "rest", cores), Part(env, "client", cores)))
        self.replicas = []
        for k in range(cluster.replicas):
            node = self.nodes[k % count]  # Serve spreads replicas
            self.replicas.append(Replica(node, Part(env, "replica", node.cores), Part(env, "device")))
        name = "proxy" if cluster.costs.proxy else "caller"
        nodes = [self.nodes[k % count] for k in range(cluster.callers)]
        self.callers = [Caller(node, Part(env, name, node.cores)) for node in nodes]
        self._warm_ms = 500 * cluster.seconds
        self._latency: list[float] = []

    def run(self) -> Found:
        """Return what happens after the first third of the time."""
        cluster = self.cluster
        for k in range(min(4 * cluster.replicas, MOST_WAITING * cluster.callers)):
            self.env.process(self._client(self.callers[k % len(self.callers)]))
        self.env.run(self._warm_ms)
        self._latency.clear()
        parts = [caller.process for caller in self.callers]
        parts += [part for replica in self.replicas for part in (replica.process, replica.device)]
        parts += [node.card for node in self.nodes] + [node.client for node in self.nodes]
        for part in parts:
            part.busy = 0.0
        self.env.run(self._warm_ms + 1000 * cluster.seconds)
        busy: dict[str, float] = {}
        for part in parts:
            busy[part.kind] = max(busy.get(part.kind, 0.0), part.busy / (1000 * cluster.seconds))
        return Found(len(self._latency) / cluster.seconds, self._latency, busy)

    def _client(self, caller: Caller) -> Iterator[Any]:
        while True:
            begin = self.env.now
            yield from self._request(caller)
            self._latency.append(self.env.now - begin)

    def _request(self, caller: Caller) -> Iterator[Any]:
        """One request: half of the work of each process on the way there, half on the way back."""
        costs, slower = self.cluster.costs, self._slower
        has_client = bool(costs.proxy) and self.cluster.has_clients
        half = slower * (costs.proxy or costs.caller) / 2
        wait = self.env.timeout
        if has_client:
            yield from caller.node.client.work(slower * costs.caller / 2)
        yield from caller.process.work(half)
        replica = self._choose(caller)
        yield wait(costs.waiting / 2)
        yield from self._carry(caller, replica)
        yield from replica.process.work(slower * costs.replica / 2)
        yield from replica.device.work(self.cluster.device_ms)
        yield from replica.process.work(slower * costs.replica / 2)
        replica.ongoing -= 1
        yield wait(costs.waiting / 2)
        self.env.process(replica.node.rest.work(slower * costs.rest))
        caller.known[id(replica)] = replica.ongoing
        yield from caller.process.work(half)
        if has_client:
            yield from caller.node.client.work(slower * costs.caller / 2)

    def _carry(self, caller: Caller, replica: Replica) -> Iterator[Any]:
        """Take the network cards of both nodes, where they are two."""
        if self.cluster.bytes and caller.node is not replica.node:
            ms = self.cluster.bytes * 8 / (self.cluster.network_gbps * 1e6)
            yield from caller.node.card.work(ms)
            yield from replica.node.card.work(ms)

    def _choose(self, caller: Caller) -> Replica:
        """Take the better of two at random, as Serve does; one that has its maximum refuses, and others are tried."""
        near = self.replicas
        if self.cluster.is_local:
            near = [replica for replica in near if replica.node is caller.node] or near
        while True:
            two = self._random.sample(near, min(2, len(near)))
            best = min(two, key=lambda replica: caller.known.get(id(replica), 0))
            if best.ongoing < self.cluster.max_ongoing:
                best.ongoing += 1
                caller.known[id(best)] = caller.known.get(id(best), 0) + 1
                return best


# --- the real thing -----------------------------------------------------------------------------

PARTS = ("caller", "proxy", "replica", "rest")
MOST_OFF = 0.15


async def measure(rounds: int, seconds: float) -> tuple[dict[str, Costs], list[Row]]:
    """Measure what a request costs with one replica, over a handle and over HTTP; needs Ray."""
    from . import cluster_real as real

    alone = [await real.without_ray(DEVICE_MS, seconds / 2) for _ in range(rounds)]
    plain = statistics.median(sample.latency_ms for sample in alone)
    found: dict[str, list[Costs]] = {"handle": [], "http": []}
    lonely: dict[str, list[float]] = {"handle": [], "http": []}
    with real.ray_here() as port:
        async with real.ways(real.start(1, DEVICE_MS), port) as ways:
            for ask in ways.values():
                await real.closed_loop(ask, 4, seconds / 2)
            for _ in range(rounds):
                idle = await real.idle(seconds)
                for way, ask in ways.items():
                    one = await real.closed_loop(ask, 1, seconds)
                    many = await real.closed_loop(ask, 4, seconds)
                    ms = {
                        part: 1e3 * max(0.0, many.cpu_s[part] / many.seconds - idle[part]) / many.rate for part in PARTS
                    }
                    waiting = max(0.0, one.latency_ms - DEVICE_MS - sum(ms[part] for part in PARTS[:3]))
                    found[way].append(Costs(**ms, waiting=waiting))
                    lonely[way].append(one.latency_ms)
    costs = {way: Costs(*map(statistics.median, zip(*some, strict=True))) for way, some in found.items()}
    rows = [Row(f"none: one request, ms (device {DEVICE_MS:g})", f"{plain:.2f}")]
    for way, (caller, proxy, replica, rest, waiting) in costs.items():
        text = f"caller {caller:.2f}, proxy {proxy:.2f}, replica {replica:.2f}, rest {rest:.2f}, waiting {waiting:.2f}"
        added = statistics.median(lonely[way])
        rows.append(Row(f"{way}: one request, ms", f"{added:.2f}", f"{added - plain:+.2f}", text))
    return costs, rows


async def check(costs: dict[str, Costs], rounds: int, seconds: float) -> tuple[float, list[Row]]:
    """Compare with real replicas; return by how much the worst figure is off."""
    from . import cluster_real as real

    rows: list[Row] = []
    worst = 0.0
    controller: dict[int, float] = {}
    with real.ray_here() as port:
        for replicas in (1, 2, 4):
            async with real.ways(real.start(replicas, DEVICE_MS), port) as ways:
                for ask in ways.values():
                    await real.closed_loop(ask, 4 * replicas, seconds / 2)
                idle = [await real.idle(seconds) for _ in range(rounds)]
                controller[replicas] = statistics.median(sample["controller"] for sample in idle)
                for way, ask in ways.items():
                    samples = [await real.closed_loop(ask, 4 * replicas, seconds) for _ in range(rounds)]
                    rate = statistics.median(sample.rate for sample in samples)
                    cores = statistics.median(sample.cores for sample in samples)
                    here = Cluster(costs[way], replicas, replicas_per_node=replicas, cores=cores, has_clients=True)
                    model = Simulation(replace(here, seconds=5)).run()
                    off = model.rate / rate - 1
                    worst = max(worst, abs(off))
                    text = f"{off:+.1%}; {cores:.1f} cores, {model.limit} busy {model.busy[model.limit]:.0%}"
                    what = f"{way}, {replicas} replicas, requests/s; model"
                    rows.append(Row(what, f"{rate:.0f}", f"{model.rate:.0f}", text))
    text = ", ".join(f"{count} replicas: {share:.1%}" for count, share in controller.items())
    rows.append(Row("controller, of a core, while nothing is asked", "", "", text))
    return worst, rows


def scale(costs: dict[str, Costs], seconds: float) -> list[Row]:
    """Simulate 10, 100 and 1,000 replicas."""
    rows: list[Row] = []
    for replicas in (10, 100, 1000):
        nodes = -(-replicas // 8)
        handle, http = (Cluster(costs[way], replicas, seconds=seconds) for way in ("handle", "http"))
        ways = {
            "one proxy": http,
            "a proxy on each node": replace(http, callers=nodes, is_local=True),
            "one caller of a handle": handle,
            "a caller on each node": replace(handle, callers=nodes),
            "eight callers on each node": replace(handle, callers=8 * nodes),
            "the same, 600 KB": replace(handle, callers=8 * nodes, bytes=600_000),
        }
        for name, cluster in ways.items():
            found = Simulation(cluster).run()
            share = found.rate * DEVICE_MS / 1e3 / replicas
            p50, p99 = (percentile(found.latency_ms, percent) for percent in (50, 99))
            busy = f"{found.limit} busy {found.busy[found.limit]:.0%}"
            text = f"{share:.0%} of the devices; {busy}; p50 {p50:.0f}, p99 {p99:.0f} ms"
            rows.append(Row(f"{replicas} replicas, {name}", f"{found.rate:.0f}", "", text))
    return rows


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of some values; 0 of none."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0


def main() -> None:
    """Simulate, measure or check, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the costs, do not take the noted ones")
    parser.add_argument("--check", action="store_true", help="measure, compare with real replicas; fail above 15 %%")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    costs, worst = MEASURED, 0.0
    rows: list[Row] = []
    if arguments.measure or arguments.check:
        costs, rows = asyncio.run(measure(arguments.rounds, arguments.seconds))
    if arguments.check:
        worst, found = asyncio.run(check(costs, arguments.rounds, arguments.seconds))
        rows += found
    else:
        rows += scale(costs, 1.0)
    show(rows)
    write(arguments.json, {"costs": {way: each._asdict() for way, each in costs.items()}, "rows": rows}, "asyncio")
    if worst > MOST_OFF:
        raise SystemExit(f"the model is {worst:.0%} off; expected at most {MOST_OFF:.0%}")


if __name__ == "__main__":
    main()
