"""Where the boxes of a layered drawing go.

The law: pure geometry, close to linear. Layers are levels; inside a layer the order comes from a few
sweeps of barycentres, which keep edges from crossing; positions are the least-squares ones that keep
that order and the gaps (pool-adjacent-violators, one pass per layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from . import graph

_SWEEPS = 8
_BESIDE = 7.0  # between two edges that run side by side
_MAX_BENDS = 6000  # points that long edges get in the layers they cross; beyond, edges are straight


@dataclass(slots=True)
class Layout:
    """Layers of nodes in their order, a centre across the layers for each, and the nodes an edge passes."""

    layers: list[list[str]]
    centre: dict[str, float]
    routes: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def layout(parents: Mapping[str, tuple[str, ...]], size: Mapping[str, float], gap: float) -> Layout:
    """Place nodes of the given sizes (across the layers), `gap` apart."""
    depth = graph.depths(parents)
    layers: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name in parents:
        layers[depth[name]].append(name)
    above: dict[str, list[str]] = {name: [] for name in parents}
    bends = sum(depth[name] - depth[parent] - 1 for name in parents for parent in parents[name])
    routes: dict[tuple[str, str], list[str]] = {}
    for name, each in parents.items():
        for parent in each:
            routes[parent, name] = _route(parent, name, depth, layers, above, bend=bends <= _MAX_BENDS)
    below: dict[str, list[str]] = {name: [] for name in above}
    for name, each_above in above.items():
        for parent in each_above:
            below[parent].append(name)
    _order(layers, above, below)
    # Edges side by side need less room than boxes: a bend gives back most of the gap around it.
    sizes = {name: size.get(name, _BESIDE - gap) for name in above}
    return Layout(layers, _centres(layers, above, below, sizes, gap), routes)


def _route(
    parent: str,
    name: str,
    depth: Mapping[str, int],
    layers: list[list[str]],
    above: dict[str, list[str]],
    *,
    bend: bool,
) -> list[str]:
    """The points an edge passes through: one in every layer between, so that it goes around boxes."""
    route = [parent]
    for level in range(depth[parent] + 1, depth[name]) if bend else ():
        point = f"{parent}\n{name}\n{level}"  # no step has such a name
        layers[level].append(point)
        above[point] = [route[-1]]
        route.append(point)
    if bend or depth[name] == depth[parent] + 1:
        above[name].append(route[-1])
    return [*route, name]


def _order(layers: list[list[str]], above: Mapping[str, list[str]], below: Mapping[str, list[str]]) -> None:
    place = {name: float(position) for layer in layers for position, name in enumerate(layer)}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            around = above if down else below
            wish = {name: _mean([place[each] for each in around[name]], place[name]) for name in layer}
            layer.sort(key=wish.__getitem__)  # stable
            place.update((name, float(position)) for position, name in enumerate(layer))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _centres(
    layers: list[list[str]],
    above: Mapping[str, list[str]],
    below: Mapping[str, list[str]],
    size: Mapping[str, float],
    gap: float,
) -> dict[str, float]:
    centre: dict[str, float] = {}
    for layer in layers:
        edge = -sum(size[name] + gap for name in layer) / 2
        for name in layer:
            centre[name] = edge + size[name] / 2
            edge += size[name] + gap
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            around = above if down else below
            wishes = [_mean([centre[each] for each in around[name]], centre[name]) for name in layer]
            centre.update(zip(layer, _spaced(wishes, [size[name] for name in layer], gap), strict=True))
    least = min((centre[name] - size[name] / 2 for name in centre), default=0.0)
    return {name: value - least for name, value in centre.items()}


def _spaced(wishes: Sequence[float], sizes: Sequence[float], gap: float) -> list[float]:
    """The centres closest to the wishes that keep the order and the gaps."""
    offsets = [0.0]
    for left, right in pairwise(sizes):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    # Without their offsets, the centres only have to ascend: blocks that do not are joined at their mean.
    blocks: list[tuple[float, int]] = []
    for wish, offset in zip(wishes, offsets, strict=True):
        total, count = wish - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            before = blocks.pop()
            total, count = total + before[0], count + before[1]
        blocks.append((total, count))
    levels = [total / count for total, count in blocks for _ in range(count)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
