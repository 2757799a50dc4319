"""PyTorch's side of benchmarks/pytorch.py: ``python pytorch_side.py JOB.json`` in an environment that has
torch and NumPy, and nothing of this project.

It runs the graph that MXNet describes, operator by operator, so that both sides compute the same
network on the same weights.
"""
from __future__ import annotations

import ast
import json
import sys
from typing import Any, Callable, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from serving import serve, timed

MOMENTUM, DECAY, IGNORE = 0.9, 5e-4, 255


class Network(torch.nn.Module):
    """The nodes of a graph in MXNet's JSON; every array of ``values`` is a parameter or a statistic."""

    def __init__(self, graph: Dict[str, Any], values: Dict[str, np.ndarray], trained: List[str]) -> None:
        super().__init__()
        self._nodes, self._heads = graph["nodes"], graph["heads"]
        self._values = {}
        for name, value in values.items():
            tensor = torch.nn.Parameter(torch.from_numpy(value), requires_grad=name in trained)
            if name in trained:
                self.register_parameter(name, tensor)
            else:
                tensor = tensor.data
            self._values[name] = tensor

    def layout(self) -> None:
        """Bring the filters to the order that suits images whose channels are last."""
        for value in self._values.values():
            if value.dim() == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> List[torch.Tensor]:
        results: List[Any] = []
        for node in self._nodes:
            if node["op"] == "null":
                results.append([self._values.get(node["name"], images)])
                continue
            inputs = [results[at][output] for at, output, *_ in node["inputs"]]
            found = OPERATORS[node["op"]](self.training, node.get("attrs", {}), *inputs)
            results.append(found if isinstance(found, (list, tuple)) else [found])
        return [results[at][output] for at, output, *_ in self._heads]


def _tuple(attrs: Dict[str, str], key: str, default: Any) -> Any:
    return ast.literal_eval(attrs.get(key, str(default)))


def _convolution(_: bool, attrs: Dict[str, str], x: Any, weight: Any, bias: Any = None) -> Any:
    return F.conv2d(x, weight, bias, _tuple(attrs, "stride", (1, 1)), _tuple(attrs, "pad", (0, 0)),
                    _tuple(attrs, "dilate", (1, 1)), int(attrs.get("num_group", 1)))


def _batch_norm(training: bool, attrs: Dict[str, str], x: Any, gamma: Any, beta: Any, mean: Any,
                variance: Any) -> Any:
    follows = training and attrs.get("use_global_stats") != "True"
    return F.batch_norm(x, mean, variance, None if attrs.get("fix_gamma", "True") == "True" else gamma, beta,
                        follows, 0.1, float(attrs.get("eps", 1e-3)))


def _pooling(_: bool, attrs: Dict[str, str], x: Any) -> Any:
    return F.max_pool2d(x, _tuple(attrs, "kernel", ()), _tuple(attrs, "stride", (1, 1)),
                        _tuple(attrs, "pad", (0, 0)))


def _batch_dot(_: bool, attrs: Dict[str, str], one: Any, other: Any) -> Any:
    one, other = (x.transpose(1, 2) if attrs.get(f"transpose_{side}") == "True" else x
                  for side, x in (("a", one), ("b", other)))
    return torch.bmm(one, other)


OPERATORS: Dict[str, Callable[..., Any]] = {
    "Convolution": _convolution, "BatchNorm": _batch_norm, "Pooling": _pooling, "batch_dot": _batch_dot,
    "Activation": lambda _, attrs, x: F.relu(x),
    "elemwise_add": lambda _, attrs, one, other: one + other,
    "Reshape": lambda _, attrs, x: x.flatten(2),  # (0, 0, -1), the only one in this network
    "reshape_like": lambda _, attrs, x, like: x.reshape(like.shape),
    "softmax": lambda _, attrs, x: F.softmax(x, int(attrs.get("axis", -1))),
    "SliceChannel": lambda _, attrs, x: torch.chunk(x, int(attrs["num_outputs"]), int(attrs["axis"])),
    "Concat": lambda _, attrs, *parts: torch.cat(parts, int(attrs.get("dim", 1))),
    "_maximum": lambda _, attrs, one, other: torch.maximum(one, other),
    "_copy": lambda _, attrs, x: x,
}


def loss(branches: List[torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
    """Seed and completion loss of every branch; the last one's prediction is the completion's target
    where the image's seeds hold that class.
    """
    classes = branches[0].shape[1]
    held = torch.stack([(seeds == value).flatten(1).any(1) for value in range(classes)], dim=1)  # (N, C)
    predicted = branches[-1].argmax(1)
    known = torch.gather(held, 1, predicted.flatten(1)).reshape(predicted.shape)
    completed = torch.where(known, predicted, IGNORE)
    return sum(F.cross_entropy(logits, target, ignore_index=IGNORE)
               for logits in branches for target in (seeds, completed))


def step(job: Dict[str, Any], network: Network, images: torch.Tensor) -> Callable[[], Any]:
    """Forwards, backwards and an update with momentum."""
    with np.load(job["batch"]) as arrays:
        seeds = torch.from_numpy(arrays["label"].astype(np.int64))
    optimiser = torch.optim.SGD(network.parameters(), lr=job["lr"], momentum=MOMENTUM, weight_decay=DECAY)
    network.train()

    def work() -> None:
        optimiser.zero_grad()
        loss(network(images), seeds).backward()
        optimiser.step()
    return work


def forward(job: Dict[str, Any], network: Network, images: torch.Tensor) -> Callable[[], Any]:
    """Logits of one image, which are written once for a comparison."""
    network.eval()

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return network(images)[0]
    np.save(job["out"], work().numpy())
    return work


def main(path: str) -> int:
    with open(path, encoding="utf-8") as stream:
        job = json.load(stream)
    torch.set_num_threads(job["threads"])
    with open(job["graph"], encoding="utf-8") as stream:
        graph = json.load(stream)
    with np.load(job["values"]) as arrays:
        network = Network(graph, dict(arrays), job["trained"])
    with np.load(job["batch"]) as arrays:
        images = torch.from_numpy(arrays["data"][:job["images"]])
    if job["channels_last"]:
        network.layout()
        images = images.contiguous(memory_format=torch.channels_last)
    serve(job["pipe"], timed({"step": step, "forward": forward}[job["task"]](job, network, images)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
