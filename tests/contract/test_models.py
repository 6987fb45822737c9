"""What every model does: the same tests over each file in the folder of models."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tidemill import config, plugins
from tidemill.errors import Invalid
from tidemill.training import models
from tidemill.training.models.base import TOKENS, Model
from tidemill.training.samples import Samples
from tidemill.training.worker.evaluation import evaluate
from tidemill.training.worker.export import TOLERANCE, export, run
from tidemill.training.worker.network import Network, Plan, moments
from tidemill.training.worker.sharding import Schedule, derive
from tidemill.training.worker.stop import Stop

CLASSES = 3
SHAPES: list[tuple[int, ...]] = [(12,), (12, 12), (2, 12, 12)]
"""Shapes of samples that a model may take."""


@pytest.fixture(params=plugins.names(models))
def model(request: pytest.FixtureRequest) -> type[Model]:
    return plugins.load(models, request.param, Model)


@pytest.fixture
def settings(model: type[Model]) -> Any:
    return config.from_mapping(model.Config, {})


def fitting(model: type[Model], settings: Any) -> Iterator[tuple[int, ...]]:
    for shape in SHAPES:
        try:
            model.check(settings, shape, model.dtype, CLASSES)
        except Invalid:
            continue
        yield shape


def samples(model: type[Model], shape: tuple[int, ...], count: int = 240, seed: int = 0) -> Samples:
    """Samples of classes that are easy to tell apart: numbers by where they are large, tokens by which occur."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    if model.dtype == TOKENS:
        x = random.integers(1, 60, (count, *shape))
        x[:, 0] = y + 1000
        x[:, -1] = 0
        return Samples(x=x, y=y)
    numbers = random.normal(size=(count, *shape)) + 100.0
    numbers[..., 0:4] += 3.0 * (y == 0).reshape(-1, *[1] * len(shape))
    numbers[..., 8:12] += 3.0 * (y == 1).reshape(-1, *[1] * len(shape))
    return Samples(x=numbers, y=y)


def network(model: type[Model], settings: Any, shape: tuple[int, ...], data: Samples, seed: int = 1) -> Network:
    mean, std = moments(data.x)
    plan = Plan(model=model, config=settings, sample_shape=shape, classes=CLASSES, mean=mean, std=std)
    return Network(plan, derive(seed, "first values"))


def trained(made: Network, data: Samples, epochs: int, rate: float = 3e-3) -> None:
    flat = torch.from_numpy(made.flat).requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=rate)
    schedule = Schedule(samples=len(data), batch_size=32, workers=1, seed=1)
    for step in range(epochs * schedule.steps_per_epoch):
        part = schedule.part(schedule.order(schedule.epoch(step)), step, 0)
        gradient, _ = made.gradient(data.x[part], data.y[part], derive(1, "step", 0, step))
        flat.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        made.load(flat.detach().numpy())


def test_it_is_described(model: type[Model]) -> None:
    assert (model.__doc__ or "").split("\n")[0].endswith(".")
    assert dataclasses.is_dataclass(model.Config)
    assert model.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for name, kind, default, text in config.describe(model.Config):
        assert text, name
        assert kind in {"int", "float", "bool", "str", "list[int]"}
        assert default is not dataclasses.MISSING


def test_defaults_survive_the_way_through_json(model: type[Model], settings: Any) -> None:
    values = {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }
    assert config.from_mapping(model.Config, values) == settings


def test_unknown_hyperparameters_are_refused(model: type[Model]) -> None:
    with pytest.raises(Invalid, match="is unknown"):
        config.from_mapping(model.Config, {"no_such_thing": 1})


@pytest.mark.parametrize(
    ("shape", "dtype"), [((), "float32"), ((0,), "int64"), ((12, 12), "complex64"), ((12,), "<U3")]
)
def test_samples_that_are_none_are_refused(
    model: type[Model], settings: Any, shape: tuple[int, ...], dtype: str
) -> None:
    with pytest.raises(Invalid, match="model") as caught:
        model.check(settings, shape, dtype, CLASSES)
    assert caught.value.reason == "UNFIT_SAMPLES"


def test_it_takes_samples_of_some_shape(model: type[Model], settings: Any) -> None:
    assert list(fitting(model, settings))


def test_the_network_gives_logits_and_holds_nothing_but_parameters(model: type[Model], settings: Any) -> None:
    for shape in fitting(model, settings):
        module = model.build(settings, shape, CLASSES).eval()
        x = torch.ones((5, *shape), dtype=getattr(torch, model.dtype))
        out = module(x)
        assert out.shape == (5, CLASSES)
        assert out.dtype == torch.float32
        assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_the_same_seed_gives_the_same_values_and_gradients(model: type[Model], settings: Any) -> None:
    for shape in fitting(model, settings):
        data = samples(model, shape)
        one, two, other = (network(model, settings, shape, data, seed) for seed in (1, 1, 2))
        assert np.array_equal(one.flat, two.flat)
        assert not np.array_equal(one.flat, other.flat)
        two.gradient(data.x[:8], data.y[:8], 4)  # what came before does not matter
        first = one.gradient(data.x[8:20], data.y[8:20], 5)[0].copy()
        assert np.array_equal(first, two.gradient(data.x[8:20], data.y[8:20], 5)[0])
        assert np.isfinite(first).all()
        assert first.any()


def test_it_learns(model: type[Model], settings: Any) -> None:
    for shape in fitting(model, settings):
        data, unseen = samples(model, shape), samples(model, shape, 90, seed=1)
        made = network(model, settings, shape, data)
        trained(made, data, epochs=12)
        assert evaluate(made, unseen, Stop()).accuracy >= 0.95, shape


def test_what_is_exported_takes_raw_samples_and_computes_the_same(
    model: type[Model], settings: Any, tmp_path: Path
) -> None:
    shape = next(fitting(model, settings))
    data = samples(model, shape)
    made = network(model, settings, shape, data)
    worst = export(made, data.x, tmp_path / "model.onnx", 1)
    assert worst <= TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for count in (1, 2, 7, 240):  # of any batch size
        x = made.tensor(data.x[:count]).numpy()
        y = run(tmp_path / "model.onnx", x, 1)
        assert y.shape == (count, CLASSES)
        assert np.allclose(y.sum(1), 1, atol=1e-5)
        assert np.abs(y - torch.softmax(torch.from_numpy(made.logits(x)), 1).numpy()).max() <= TOLERANCE
