"""From a job's specification to samples that are split, and a network that fits them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidemill import plugins
from tidemill.config import from_mapping
from tidemill.errors import invalid
from tidemill.training import datasets, models
from tidemill.training.datasets.base import Options, Reader
from tidemill.training.models.base import FLOAT, TOKENS, Model, unfit
from tidemill.training.samples import Dataset, Samples, bad
from tidemill.training.spec import JobSpec
from tidemill.training.worker.network import Plan, moments
from tidemill.training.worker.sharding import split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """Everything a worker needs to know about its samples."""

    train: Samples
    validation: Samples
    test: Samples
    labels: tuple[str, ...]
    tokenizer: str
    digest: str
    plan: Plan


def read(spec: JobSpec, files: Mapping[str, Path], limit: int) -> Dataset:
    """The data set of a job.

    Args:
        spec: the job's.
        files: the files of its artifact; none for a built-in data set.
        limit: most bytes that the samples may have.

    Raises:
        Invalid: there is no such data set or format, or its content is bad.
    """
    source = spec.dataset
    options = Options(
        builtin=source.builtin,
        label_column=source.label_column or Options().label_column,
        text_column=source.text_column,
        limit=limit,
    )
    name = "builtin" if source.builtin else source.format or guess(files)
    reader = plugins.load(datasets, name, Reader)
    if not reader.has_columns and (options.text_column or options.label_column != Options().label_column):
        raise bad(f"files of the format {name} have no columns to choose from")
    return reader.read(files, options)


def guess(files: Mapping[str, Path]) -> str:
    """The format of files by their names.

    Raises:
        Invalid: none fits.
    """
    for name in plugins.names(datasets):
        if plugins.load(datasets, name, Reader).accepts(list(files)):
            return name
    raise invalid("dataset.format", f"no known format has files named {', '.join(sorted(files))[:200]}")


def prepare(spec: JobSpec, dataset: Dataset) -> Prepared:
    """Split the samples, check that the model can take them, and measure how to standardize them.

    Raises:
        Invalid: the samples do not fit the model, or cannot be split.
    """
    model = plugins.load(models, spec.model.name, Model)
    config = from_mapping(model.Config, spec.model.parameters, "model.parameters")
    model.check(config, dataset.sample_shape, dataset.samples.x.dtype.name, len(dataset.labels))
    if dataset.tokenizer and model.dtype != TOKENS:
        raise unfit(spec.model.name, "takes numbers, not texts")
    own = dataset.test
    parts = split(dataset.samples.y, spec.split.validation, 0.0 if own is not None else spec.split.test, spec.seed)
    train = dataset.samples.take(parts.train)
    if len(train) == 0:
        raise bad("no sample is left to train on")
    shape = (1,) * len(dataset.sample_shape)
    mean, std = moments(train.x) if model.dtype == FLOAT else (np.zeros(shape, np.float32), np.ones(shape, np.float32))
    return Prepared(
        train=train,
        validation=dataset.samples.take(parts.validation),
        test=own if own is not None else dataset.samples.take(parts.test),
        labels=dataset.labels,
        tokenizer=dataset.tokenizer,
        digest=dataset.digest(),
        plan=Plan(
            model=model,
            config=config,
            sample_shape=dataset.sample_shape,
            classes=len(dataset.labels),
            mean=mean,
            std=std,
        ),
    )
