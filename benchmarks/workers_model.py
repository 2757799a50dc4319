"""A model of a training step of ResNet-101 on a cluster, out of what benchmarks/workers.py measures.

    T(n, s) = own + w P + max((32 + b) P / B * max(1, n / s), c P n / s)

n workers, s servers, P trained parameters. A worker needs ``own`` seconds for its images and ``w``
a parameter for handing it over. Every link carries B bits a second: b for each gradient sent and 32
for each sum that comes back, n / s times as many at a server. A server needs ``c`` seconds a
parameter of each worker. Nothing overlaps but a server's link with its work; w and c are CPU time
on the machine that was measured.
"""
from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

CLUSTERS = tuple(2 ** power for power in range(10))
GBIT = (10, 100)
PARAMETERS = 51_174_592  # of ResNet-101 that train
# An assumption, for no GPU was at hand: 4 images of 321 pixels, 89.671e9 multiply-adds each (Table
# 1), 2 operations in one, a backward pass of twice the forward pass, at 10e12 operations a second.
OWN_S = 4 * 89.671e9 * 2 * 3 / 10e12
BITS = (32, 2)  # of a gradient: as it is, or in the store's compression
LINES: Dict[str, Tuple[int, int]] = {
    "4 servers a worker": (4, 32), "a server a worker": (1, 32), "a server a worker, 2 bits": (1, 2),
    "1 server": (0, 32)}  # servers a worker (0: one for all), and bits


def step_seconds(workers: int, servers: int, gbit: float, bits: float, costs: Dict[str, float]) -> float:
    """T of the module's formula; a worker alone needs no store."""
    if workers == 1:
        return OWN_S
    share = workers / servers
    link = (32 + bits) * costs["parameters"] / (1e9 * gbit) * max(1.0, share)
    return OWN_S + costs["worker_s"] + max(link, costs["server_s"] * share)


def modelled(measured: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """What the store costs, w P and c P, as it is and compressed, in proportion to the largest network
    that was measured, and a step on each cluster: its seconds, and its images over those of one
    worker in the same time.
    """
    costs = {}
    for bits, kind in zip(BITS, ("store", "compressed")):
        network = max(measured[0][kind].items(), key=lambda item: item[1]["parameters"])[0]
        own = [(point["workers"], point[kind][network]) for point in measured]
        share = PARAMETERS / own[0][1]["parameters"]
        costs[bits] = {
            "network": network, "parameters": PARAMETERS,
            "worker_s": share * float(np.median([store["worker_cpu_s"]["median"] for _, store in own])),
            "server_s": share * float(np.median([store["server_cpu_s"]["median"] / count
                                                 for count, store in own]))}
    points = [{"workers": count, "servers": share * count or 1, "servers_a_worker": share, "gbit": gbit,
               "bits": bits, "seconds": step_seconds(count, share * count or 1, gbit, bits, costs[bits])}
              for gbit in GBIT for share, bits in LINES.values() for count in CLUSTERS]
    return {"costs": {"own_s": OWN_S, **{f"{bits} bits": own for bits, own in costs.items()}},
            "model": [{**point, "speed": point["workers"] * OWN_S / point["seconds"]} for point in points]}


def draw(points: List[Dict[str, Any]], stream: Any) -> None:
    """Speed over one worker against workers, a panel for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, gbit in zip(figure.subplots(1, len(GBIT), sharey=True), GBIT):
        axes.plot(CLUSTERS, CLUSTERS, color="gray", linestyle=":", label="as many times as workers")
        for label, line in LINES.items():
            own = [point for point in points
                   if (point["servers_a_worker"], point["bits"], point["gbit"]) == (*line, gbit)]
            axes.plot(CLUSTERS, [point["speed"] for point in own], marker="o", ms=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel="workers", title=f"{gbit} Gbit/s")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("images a second, over one worker's")
    figure.axes[0].legend()
    figure.savefig(stream, format="png", dpi=110)
