"""The models in PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainers import models
from trainers.job import Job
from trainers.models import MODELS, Model


class Ops:
    """What the models are made of; `sparse`: the gradient of an embedding has the touched rows alone."""

    relu = staticmethod(functional.relu)
    dense = staticmethod(functional.linear)
    cross_entropy = staticmethod(functional.cross_entropy)

    def __init__(self, sparse: bool) -> None:
        self._sparse = sparse

    def rows(self, table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Some rows of a table."""
        return functional.embedding(indices, table, sparse=self._sparse)

    @staticmethod
    def concatenate(values: list[torch.Tensor]) -> torch.Tensor:
        """One vector."""
        return torch.cat(list(values)) if len(values) > 1 else values[0]

    @staticmethod
    def half_squares(x: torch.Tensor) -> torch.Tensor:
        """Half of the sum of squares."""
        return 0.5 * x.square().sum()

    @staticmethod
    def convolve(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        """Convolution that keeps the size, but for the stride."""
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def normalize(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Batch normalization."""
        return functional.batch_norm(x, None, None, scale, shift, training=True)

    @staticmethod
    def mean_of_places(x: torch.Tensor) -> torch.Tensor:
        """Mean over height and width."""
        return x.mean((2, 3))


class Net(nn.Module):
    """A model whose forward pass gives the loss."""

    def __init__(self, model: Model, sparse: bool = True) -> None:
        super().__init__()
        self.model = model
        self._ops = Ops(sparse)
        values = [nn.Parameter(torch.from_numpy(value)) for value in models.first_values(model)]
        if model.kind == "embedding" and sparse:
            # DDP sees only from this class that a gradient will be sparse.
            self.table = nn.Embedding(*model.tensors[0], sparse=True, _weight=values[0])
            values = [self.table.weight]
        self.values = nn.ParameterList(values)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        return models.loss(self._ops, self.model, list(self.values), x, y)

    def descend(self) -> None:
        """One step of plain SGD, as `torch.optim.SGD` makes it on a CPU; without that class processes start sooner."""
        with torch.no_grad():
            for value in self.values:
                value.add_(value.grad, alpha=-self.model.rate)

    def clear(self) -> None:
        """Forget the gradients."""
        for value in self.values:
            value.grad = None

    def flat(self) -> np.ndarray:
        """A copy of the parameters."""
        return np.concatenate([value.detach().numpy().ravel() for value in self.values])


def prepare(job: Job, sparse: bool = True) -> Net:
    """The network, once the threads are set."""
    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(job.threads)
    return Net(MODELS[job.model], sparse)


def data(job: Job, rank: int) -> list[Any]:
    """A worker's batches."""
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in models.batches(MODELS[job.model], rank)]


def size(tensors: Any) -> int:
    """Bytes of gradients or parameters, dense or sparse, as they are sent."""
    total = 0
    for tensor in tensors:
        if tensor.is_sparse:
            total += tensor._values().nbytes + tensor._indices().nbytes
        else:
            total += tensor.nbytes
    return total
