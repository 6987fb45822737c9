"""What single models do beyond what all of them do."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from tidemill.config import from_mapping
from tidemill.errors import Invalid
from tidemill.training.models.cnn import Cnn
from tidemill.training.models.mlp import Mlp
from tidemill.training.models.text import Text
from tidemill.training.worker.network import MAX_PARAMETERS, Network, Plan, moments


class TestMlp:
    @pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
    @pytest.mark.parametrize("hidden", [[], [7], [16, 8, 4]])
    def test_layers_are_as_asked(self, hidden: list[int], activation: str) -> None:
        config = from_mapping(Mlp.Config, {"hidden": hidden, "activation": activation, "dropout": 0.5})
        module = Mlp.build(config, (3, 5), 4)
        shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
        assert shapes == list(zip([*hidden, 4], [15, *hidden], strict=True))
        assert module(torch.zeros(2, 3, 5)).shape == (2, 4)

    @pytest.mark.parametrize(
        "values",
        [{"activation": "softplus"}, {"hidden": [0]}, {"hidden": 5}, {"dropout": 1.0}, {"hidden": [2] * 65}],
    )
    def test_hyperparameters_that_are_wrong(self, values: dict[str, Any]) -> None:
        with pytest.raises(Invalid):
            from_mapping(Mlp.Config, values)


class TestCnn:
    def test_it_is_the_mnist_network(self) -> None:
        module = Cnn.build(Cnn.Config(), (28, 28), 10)
        assert sum(p.numel() for p in module.parameters()) == 1_199_882
        assert module.eval()(torch.zeros(2, 28, 28)).shape == (2, 10)

    def test_channels_come_first(self) -> None:
        module = Cnn.build(Cnn.Config(), (3, 32, 40), 5).eval()
        assert module(torch.zeros(2, 3, 32, 40)).shape == (2, 5)

    @pytest.mark.parametrize("shape", [(30,), (5, 8), (8, 5), (28, 28, 1), (0, 8, 8), (1, 1, 8, 8)])
    def test_images_that_are_too_small_or_none(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(Invalid, match=r"at least 6x6 pixels"):
            Cnn.check(Cnn.Config(), shape, "float32", 10)

    @pytest.mark.parametrize("values", [{"channels": []}, {"channels": [1] * 9}, {"dense": 0}])
    def test_hyperparameters_that_are_wrong(self, values: dict[str, Any]) -> None:
        with pytest.raises(Invalid):
            from_mapping(Cnn.Config, values)


class TestText:
    def test_padding_and_order_do_not_matter(self) -> None:
        module = Text.build(Text.Config(), (5,), 3).eval()
        words = [zlib.crc32(word.encode()) for word in ("tide", "mill", "sea")]
        same = torch.tensor([[*words, 0, 0], [0, words[2], words[0], 0, words[1]]])
        out = module(same)
        assert torch.allclose(out[0], out[1], atol=1e-6)

    def test_any_token_of_a_caller_is_taken(self) -> None:
        module = Text.build(Text.Config(vocabulary=10), (4,), 3).eval()
        extreme = torch.tensor([[-1, -(2**63), 2**63 - 1, 5], [0, 0, 0, 0]])
        assert torch.isfinite(module(extreme)).all()

    def test_numbers_with_fractions_are_refused(self) -> None:
        with pytest.raises(Invalid, match="whole numbers"):
            Text.check(Text.Config(), (5,), "float32", 2)


class TestMoments:
    def test_each_number_of_flat_samples_has_its_own(self) -> None:
        x = np.random.default_rng(0).normal(5, 3, (10_000, 4)) * [1, 10, 100, 0]
        mean, std = moments(x)
        assert mean.shape == std.shape == (4,)
        assert np.allclose(mean, x.mean(0), rtol=1e-6)
        assert np.allclose(std, [*x.std(0)[:3], 1], rtol=1e-6)

    def test_images_share_one_or_one_for_each_channel(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 7)).astype(np.uint8)
        mean, std = moments(x)
        assert mean.shape == (3, 1, 1)
        assert np.allclose(std[:, 0, 0], x.std((0, 2, 3)), rtol=1e-6)
        mean, std = moments(x[:, 0])
        assert mean.shape == (1, 1)
        assert np.allclose([mean[0, 0], std[0, 0]], [x[:, 0].mean(), x[:, 0].std()], rtol=1e-6)

    def test_a_constant_is_not_blown_up(self) -> None:
        _, std = moments(np.full((1000, 2), 0.1))
        assert std.tolist() == [1, 1]


def test_a_network_beyond_the_limit_is_refused_before_it_is_made() -> None:
    side = int(MAX_PARAMETERS**0.5) + 1
    plan = Plan(
        model=Mlp,
        config=Mlp.Config(hidden=(side, side)),
        sample_shape=(2,),
        classes=2,
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
    )
    with pytest.raises(Invalid, match="parameters; at most") as caught:
        Network(plan, 1)
    assert caught.value.reason == "MODEL_TOO_LARGE"
