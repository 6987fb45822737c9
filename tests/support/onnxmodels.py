"""Small ONNX models, built when a test needs them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
Dimensions = Sequence[int | str | None] | None


def tensor(name: str, kind: int = FLOAT, shape: Dimensions = ("n", 2)) -> Any:
    """The declaration of an input or output; `shape=None` leaves the rank open."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()) -> Any:
    """A model of these parts."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def scale(factor: float, *, kind: int = FLOAT, shape: Dimensions = ("n", 2)) -> bytes:
    """y = factor * x."""
    weights = [numpy_helper.from_array(np.array(factor, helper.tensor_dtype_to_np_dtype(kind)), "factor")]
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    return bytes(model([node], [tensor("x", kind, shape)], [tensor("y", kind, shape)], weights).SerializeToString())


def heavy(size: int) -> bytes:
    """y = weights[x], of so many bytes of weights: zeros."""
    weights = helper.make_tensor("weights", FLOAT, [size // 4], bytes(size), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["weights", "index"], ["y"]),
    ]
    return bytes(model(nodes, [tensor("x")], [tensor("y")], [weights]).SerializeToString())


def identity(kind: int, shape: Dimensions = ("n", 2)) -> bytes:
    """y = x, of any element type."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return bytes(model([node], [tensor("x", kind, shape)], [tensor("y", kind, shape)]).SerializeToString())


def sums() -> bytes:
    """total = a + b and difference = a - b, of two INT32 tensors [n, 4]."""
    shape = ("n", 4)
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    inputs = [tensor(name, TensorProto.INT32, shape) for name in ("a", "b")]
    outputs = [tensor(name, TensorProto.INT32, shape) for name in ("total", "difference")]
    return bytes(model(nodes, inputs, outputs).SerializeToString())


def reshape() -> bytes:
    """y = x in the shape that the input `shape` says: fails on shapes that do not fit."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = [tensor("x", FLOAT, ["n"]), tensor("shape", TensorProto.INT64, ["k"])]
    return bytes(model([node], inputs, [tensor("y", FLOAT, None)]).SerializeToString())


def misfit(shape: Dimensions = ("n", 2)) -> bytes:
    """y = x as [3, 5], which no x [n, 2] can be."""
    weights = [numpy_helper.from_array(np.array([3, 5]), "shape")]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return bytes(model([node], [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, [3, 5])], weights).SerializeToString())


def blowup() -> bytes:
    """y = zeros of the shape that the input `shape` says, as large as the caller likes."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    return bytes(
        model([node], [tensor("shape", TensorProto.INT64, ["k"])], [tensor("y", FLOAT, None)]).SerializeToString()
    )


def external_tensor(
    name: str = "factor", location: str = "../../etc/passwd", *, dims: Sequence[int] = (1,), **more: Any
) -> Any:
    """A weight that says that it lies in another file; further keyword arguments are what it says of it (`offset`)."""
    found = onnx.TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        found.external_data.add(key=key, value=str(value))
    return found


def external(where: str, outside: Any = None) -> bytes:
    """y = x + a weight in another file, in an `initializer`, `attribute`, `sparse` tensor, `subgraph`, `loop`, ...

    Args:
        where: one of `EXTERNAL`.
        outside: the weight; its name must be "factor".
    """
    inputs, outputs = [tensor("x", FLOAT, [1])], [tensor("y", FLOAT, [1])]
    outside = external_tensor() if outside is None else outside
    constant = helper.make_node("Constant", [], ["factor"], value=outside)
    add = helper.make_node("Add", ["x", "factor"], ["y"])
    if where == "initializer":
        made = model([add], inputs, outputs, [outside])
    elif where == "attribute":
        made = model([constant, add], inputs, outputs)
    elif where == "tensors":
        node = helper.make_node("Custom", ["x"], ["y"], weights=[outside])
        made = model([node], inputs, outputs)
    elif where == "sparse":
        made = model([add], inputs, outputs)
        indices = numpy_helper.from_array(np.array([0]), "indices")
        made.graph.sparse_initializer.add(values=outside, indices=indices, dims=[1])
    elif where == "subgraph":
        inner = helper.make_graph([helper.make_node("Add", ["x", "factor"], ["z"])], "inner", [], [_z()], [outside])
        nodes = [_constant("yes", True), helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
        made = model(nodes, inputs, outputs)
    elif where == "loop":
        made = model(_loop(constant), inputs, outputs)
    else:
        made = model([helper.make_node("Shift", ["x"], ["y"], domain="local")], inputs, outputs)
        made.opset_import.append(helper.make_opsetid("local", 1))
        made.functions.append(
            helper.make_function("local", "Shift", ["x"], ["y"], [constant, add], [helper.make_opsetid("", 20)])
        )
    return bytes(made.SerializeToString())


def _loop(constant: Any) -> list[Any]:
    """A loop that runs once; `constant` stands in its body."""
    body = helper.make_graph(
        [
            constant,
            helper.make_node("Add", ["before", "factor"], ["z"]),
            helper.make_node("Identity", ["again"], ["more"]),
        ],
        "body",
        [tensor("i", TensorProto.INT64, []), tensor("again", TensorProto.BOOL, []), tensor("before", FLOAT, [1])],
        [tensor("more", TensorProto.BOOL, []), _z()],
    )
    return [
        _constant("once", 1),
        _constant("yes", True),
        helper.make_node("Loop", ["once", "yes", "x"], ["y"], body=body),
    ]


def _constant(name: str, value: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))


def _z() -> Any:
    return tensor("z", FLOAT, [1])


EXTERNAL = ("initializer", "attribute", "tensors", "sparse", "subgraph", "loop", "function")
"""Where `external` can put it."""
