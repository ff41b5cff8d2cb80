"""The networks of `splitgym.learn.network` as ONNX graphs, written node by node: no torch, and equal bytes each time.

The inputs are those of `splitgym.export.observation`, without a batch dimension; the output is ``scores``
(num_scores,). The machine axis of ``equivariant`` is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper

from splitgym.features import NUM_CLUSTER_FEATURES, NUM_MACHINE_FEATURES, NUM_REQUEST_FEATURES
from splitgym.view import DECISION_KINDS

Weights = Mapping[str, npt.NDArray[np.float32]]

OPSET, IR_VERSION = 18, 9  # of 2022: every onnxruntime from 1.14 on reads them

_CONTEXT = ("request", "cluster", "decision_kind")


def onnx_network(architecture: str, weights: Weights, heads: Sequence[str], rows: int | None) -> bytes:
    """The network's scores as an ONNX model.

    Args:
        architecture: ``equivariant`` or ``mlp``.
        weights: by parameter name, as `torch.nn.Module.state_dict` names them.
        heads: the kind of each head: ``machine``, ``role`` or ``plain``.
        rows: of ``machines``; ``None`` for any number.
    """
    graph = _Graph(weights)
    scores = _equivariant(graph, heads) if architecture == "equivariant" else _mlp(graph)
    size: int | str = "machines" if rows is None else rows
    inputs: dict[str, list[int | str]] = {
        "machines": [size, NUM_MACHINE_FEATURES],
        "present": [size],
        "request": [NUM_REQUEST_FEATURES],
        "cluster": [NUM_CLUSTER_FEATURES],
        "decision_kind": [len(DECISION_KINDS)],
    }
    graph.nodes.append(helper.make_node("Identity", [scores], ["scores"]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            architecture,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["choices"])],
            graph.constants,
        ),
        producer_name="splitgym",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Nodes and constants so far; each method adds some and returns the name of their result."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def constant(self, values: npt.ArrayLike, kind: type = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, kind), name))
        return name

    def linear(self, layer: str, inputs: str) -> str:
        weight = self.constant(self.weights[f"{layer}.weight"].T, np.float32)
        product = self.add("MatMul", inputs, weight)
        return self.add("Add", product, self.constant(self.weights[f"{layer}.bias"], np.float32))

    def pooled(self, values: str, mask: str, count: str, context: str) -> str:
        """Mean and largest over the present machines of (M, n) values ≥ 0, then the context."""
        seen, machines = self.add("Mul", values, mask), self.constant([0])
        mean = self.add("Div", self.add("ReduceSum", seen, machines, keepdims=0), count)
        return self.add("Concat", mean, self.add("ReduceMax", seen, machines, keepdims=0), context, axis=0)

    def columns(self, values: str, first: int, width: int) -> str:
        """(…, n) from ``first`` on ``width`` of the last axis, as one row."""
        cut = self.add("Slice", values, self.constant([first]), self.constant([first + width]), self.constant([-1]))
        return self.add("Reshape", cut, self.constant([-1]))


def _equivariant(graph: _Graph, heads: Sequence[str]) -> str:
    mask = graph.add("Unsqueeze", "present", graph.constant([1]))
    count = graph.add("Max", graph.add("ReduceSum", "present", keepdims=0), graph.constant(1.0, np.float32))
    context = graph.add("Concat", *_CONTEXT, axis=0)
    surroundings = graph.pooled("machines", mask, count, context)
    own, shared = graph.linear("actor.own", "machines"), graph.linear("actor.shared", surroundings)
    hidden = graph.add("Relu", graph.add("Add", own, shared))
    hidden = graph.add("Relu", graph.linear("actor.hidden", hidden))
    common = graph.linear("actor_pooled", graph.pooled(hidden, mask, count, context))
    each = graph.add("Relu", graph.add("Add", graph.linear("actor_own", hidden), common))
    if "machine_scores.weight" in graph.weights:
        each = graph.linear("machine_scores", each)  # (M, columns)
    if "shared_scores.weight" in graph.weights:
        common = graph.linear("shared_scores", graph.add("Relu", common))
    parts: list[str] = []
    column = place = 0
    for head in heads:
        if head == "machine":
            parts.append(graph.columns(each, column, 1))
            column += 1
        elif head == "role":
            parts += [graph.columns(common, place, 1), graph.columns(each, column, 3)]
            column, place = column + 3, place + 1
        else:
            parts.append(graph.columns(common, place, len(graph.weights["shared_scores.bias"]) - place))
    return graph.add("Concat", *parts, axis=0)


def _mlp(graph: _Graph) -> str:
    row = graph.add("Reshape", "machines", graph.constant([-1]))
    hidden = graph.add("Concat", row, "present", *_CONTEXT, axis=0)
    for layer in ("actor.0", "actor.2"):
        hidden = graph.add("Relu", graph.linear(layer, hidden))
    return graph.linear("actor.4", hidden)
