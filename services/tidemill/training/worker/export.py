"""The trained classifier as an ONNX file, and proof that it computes the same."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from tidemill.errors import FailedPrecondition
from tidemill.training.samples import Array
from tidemill.training.worker.names import INPUT, OUTPUT
from tidemill.training.worker.network import Classifier, Network

TOLERANCE = 1e-4
"""Largest difference between the outputs of ONNX and torch, both probabilities."""
SAMPLES = 256
"""Most test samples that they are compared on."""


class Probabilities(nn.Module):
    """[N, ...] raw samples -> probabilities of the classes [N, classes]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Softmax of the logits."""
        return torch.softmax(self.classifier(x), 1)


def export(network: Network, samples: Array, path: Path, threads: int) -> float:
    """Write the network as ONNX: input `x` [batch, ...] raw samples, output `y` [batch, classes] probabilities.

    Args:
        network: trained.
        samples: raw samples [N, ...], N >= 1, to compare the two on; `SAMPLES` of them are enough.
        path: file to write.
        threads: threads that the comparison computes with.

    Returns:
        The worst absolute difference between the outputs of ONNX and torch.

    Raises:
        FailedPrecondition: it is larger than `TOLERANCE`.
    """
    module = Probabilities(network.detached()).eval()
    x = network.tensor(samples[:SAMPLES])
    with torch.no_grad():
        wanted = module(x).numpy()
    pair = torch.cat([x[:1], x[:1]])  # a batch of one would be taken for a constant
    try:
        _trace(module, pair, path)
    except torch.onnx.OnnxExporterError:  # it does not know all operators
        _capture(module, pair, path)
    worst = float(np.abs(run(path, x.numpy(), threads) - wanted).max())
    if not worst <= TOLERANCE:
        raise FailedPrecondition(
            f"the exported model differs from the trained one by {worst:.3g}, more than {TOLERANCE:.0e}",
            reason="EXPORT_DIFFERS",
            metadata={"difference": f"{worst:.6g}"},
        )
    return worst


def _trace(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Write what the module does with `x`: it takes a quarter of a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not the exporter of torch's choice any more
        axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
        torch.onnx.export(
            module, (x,), str(path), dynamo=False, dynamic_axes=axes, input_names=[INPUT], output_names=[OUTPUT]
        )


def _capture(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Write the module as a compiler sees it: it takes four seconds, most of them to import that compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making, about its own internals
        program = torch.onnx.export(
            module,
            (x,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def run(path: Path, x: Array, threads: int) -> Array:
    """The output of the ONNX model in `path` for a batch of samples."""
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    out: Array = session.run([OUTPUT], {INPUT: x})[0]
    return out
