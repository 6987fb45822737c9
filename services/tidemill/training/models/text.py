"""A bag-of-words classifier for hashed tokens."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tidemill.config import parameter
from tidemill.training.models.base import TOKENS, Model, shown, unfit

if TYPE_CHECKING:
    import torch


class Text(Model):
    """A text classifier: the mean of word embeddings, then a dense layer (Joulin et al. 2016, "fastText").

    Tokens are numbers of any size, 0 where there is none; the network itself folds them into its vocabulary, so that
    whoever makes tokens need not know its size, and no token of a caller lies outside of it.
    """

    dtype = TOKENS

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters."""

        vocabulary: int = parameter("rows of the embedding; words share a row by their hash", 8192, low=2, high=2**22)
        embedding: int = parameter("numbers that stand for a word", 64, low=1, high=4096)
        dropout: float = parameter("part of the mean embedding dropped in training", 0.2, low=0, high=0.95)

    @classmethod
    def check(cls, config: Config, sample_shape: Sequence[int], dtype: str, classes: int) -> None:
        """Takes lists of whole numbers."""
        if np.dtype(dtype).kind not in "iu":
            raise unfit("text", f"takes tokens, whole numbers, not {dtype}")
        if len(sample_shape) != 1 or sample_shape[0] < 1:
            raise unfit("text", f"takes lists of tokens [L], not samples of shape {shown(sample_shape)}")

    @classmethod
    def build(cls, config: Config, sample_shape: Sequence[int], classes: int) -> "torch.nn.Module":
        """Embedding, mean over the tokens that are there, dropout, output layer."""
        import torch
        from torch import nn

        class Bag(nn.Module):
            """[N, L] tokens -> [N, embedding]: the mean embedding of each sample's tokens; zeros when it has none."""

            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(config.vocabulary, config.embedding)

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                """The mean over the tokens that are not 0."""
                there = (tokens != 0).unsqueeze(-1).to(torch.float32)
                vectors = self.embedding(torch.remainder(tokens, config.vocabulary)) * there
                mean: torch.Tensor = vectors.sum(1) / there.sum(1).clamp(min=1.0)
                return mean

        return nn.Sequential(
            OrderedDict(bag=Bag(), dropout=nn.Dropout(config.dropout), output=nn.Linear(config.embedding, classes))
        )
