"""Exported models: what is refused, and what their signature says."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from torch import nn

from tidemill.api.registry.v1.registry_pb2 import Signature
from tidemill.api.tensors.v1.tensors_pb2 import DATA_TYPE_FP32, DATA_TYPE_INT64
from tidemill.errors import FailedPrecondition
from tidemill.training.models.mlp import Mlp
from tidemill.training.worker.convert import to_signature
from tidemill.training.worker.export import export, run
from tidemill.training.worker.network import Network, Plan, moments

X = np.random.default_rng(0).normal(7, 5, (40, 4))


class Stepping(nn.Module):
    """A network with an operator that only the slower exporter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.heaviside(self.output(x), torch.ones(1))


class Steps(Mlp):
    """What makes them."""

    @classmethod
    def build(cls, config: Mlp.Config, sample_shape: Sequence[int], classes: int) -> nn.Module:
        return Stepping()


def network(model: type[Mlp] = Mlp) -> Network:
    mean, std = moments(X)
    plan = Plan(model=model, config=Mlp.Config(hidden=(8,)), sample_shape=(4,), classes=3, mean=mean, std=std)
    return Network(plan, 1)


def test_standardizing_is_part_of_the_model(tmp_path: Path) -> None:
    made = network()
    export(made, X, tmp_path / "m.onnx", 1)
    weights = made.named()
    assert weights.keys() == {"mean", "std", *(f"network.{name}" for name, _ in made.tensors)}
    by_hand = (X - X.mean(0)) / X.std(0)
    hidden = np.maximum(by_hand @ weights["network.hidden0.weight"].T + weights["network.hidden0.bias"], 0)
    logits = hidden @ weights["network.output.weight"].T + weights["network.output.bias"]
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(run(tmp_path / "m.onnx", X.astype(np.float32), 1) - wanted).max() < 1e-5


def test_rare_operators_are_exported_too(tmp_path: Path) -> None:
    assert export(network(Steps), X, tmp_path / "m.onnx", 1) < 1e-4
    outputs = run(tmp_path / "m.onnx", X.astype(np.float32), 1)
    assert np.abs(outputs.sum(1) - 1).max() < 1e-5
    assert len(np.unique(outputs.round(3))) > 2


def test_a_model_that_does_not_compute_the_same_is_refused(tmp_path: Path) -> None:
    made = network()
    made.load(np.full_like(made.flat, np.nan))
    with pytest.raises(FailedPrecondition, match="differs from the trained one by nan") as caught:
        export(made, X, tmp_path / "m.onnx", 1)
    assert caught.value.reason == "EXPORT_DIFFERS"


@pytest.mark.parametrize(
    ("dtype", "shape", "wanted"), [("float32", (1, 28, 28), DATA_TYPE_FP32), ("int64", (9,), DATA_TYPE_INT64)]
)
def test_the_signature_is_what_the_registry_understands(dtype: str, shape: tuple[int, ...], wanted: int) -> None:
    text = to_signature(dtype, shape, ("no", "yes"))
    assert "\n" not in text
    assert json.loads(text)["labels"] == ["no", "yes"]
    signature = json_format.Parse(text, Signature())
    [x], [y] = signature.inputs, signature.outputs
    assert (x.name, x.dtype, list(x.shape)) == ("x", wanted, [-1, *shape])
    assert (y.name, y.dtype, list(y.shape)) == ("y", DATA_TYPE_FP32, [-1, 2])
