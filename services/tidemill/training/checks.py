"""What of a job's spec can be known to be wrong before it runs, and the defaults of what it leaves out."""

import dataclasses
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tidemill import codecs, config, names, plugins, schedules
from tidemill.codecs.base import Codec
from tidemill.compression.choice import AUTO, EXACT
from tidemill.errors import Invalid
from tidemill.schedules.base import Schedule
from tidemill.training import datasets, models, optimizers, strategies
from tidemill.training.datasets import builtin
from tidemill.training.datasets.base import Options, Reader
from tidemill.training.models.base import Model
from tidemill.training.spec import (
    Component,
    Consistency,
    Dataset,
    Durability,
    EarlyStopping,
    JobSpec,
    Split,
    Stragglers,
)
from tidemill.training.strategies.base import CONSTANT, Strategy

MAX_RESTARTS = 3
"""Workers replaced when the spec does not say how many."""
MODES = ("bsp", "ssp", "asp")
MAX_STALENESS = 1 << 20
STRAGGLERS = ("wait", "drop", "fail")
MAX_STRAGGLING = 86_400.0
DURABILITIES = ("none", "wal", "replicated", "checkpoint")
INTERVAL_STEPS = 100
"""Steps between two checkpoints of parameter shards when the spec does not say how many."""
FORMATS = tuple(name for name in plugins.names(datasets) if name != "builtin")


def complete(spec: JobSpec) -> JobSpec:
    """`spec` with every default filled in, but for hyperparameters of optimizers that parameter servers run and know.

    Raises:
        Invalid: something is wrong; the violations name every field that is.
    """
    check = _Problems()
    strategy = check.plugin("spec.strategy", spec.strategy or "parameter_server", strategies)
    sharded = not strategy or plugins.load(strategies, strategy, Strategy).needs_shards
    done = JobSpec(
        model=_model(check, spec.model),
        dataset=_dataset(check, spec.dataset),
        split=_split(check, spec.split),
        optimizer=_optimizer(check, spec.optimizer, sharded),
        strategy=strategy,
        workers=check.number("spec.workers", spec.workers or 1, 1, 64),
        shards=check.number("spec.shards", spec.shards or _shards(spec), 1, 64) if sharded else 0,
        epochs=check.number("spec.epochs", spec.epochs or 10, 1, 10_000),
        batch_size=check.number("spec.batch_size", spec.batch_size or 64, 1, 1 << 20),
        seed=spec.seed,
        early_stopping=EarlyStopping(
            patience=check.number("spec.early_stopping.patience", spec.early_stopping.patience, 0, 10_000),
            min_delta=check.number("spec.early_stopping.min_delta", spec.early_stopping.min_delta, 0.0, 1e9),
        ),
        register_as=check.resource("spec.register_as", spec.register_as, "models"),
        alias=check.name("spec.alias", spec.alias),
        max_restarts=check.number(
            "spec.max_restarts", MAX_RESTARTS if spec.max_restarts is None else spec.max_restarts, 0, 100
        ),
        code_revision=check.text("spec.code_revision", spec.code_revision),
        checkpoint_steps=check.number("spec.checkpoint_steps", spec.checkpoint_steps, 0, 10**9),
        consistency=_consistency(check, spec.consistency, sharded),
        schedule=_schedule(check, spec.schedule),
        clip_norm=check.number("spec.clip_norm", spec.clip_norm, 0.0, 1e30),
        l1=check.number("spec.l1", spec.l1, 0.0, 1e6),
        codec=_codec(check, spec.codec, sharded),
        durability=_durability(check, spec.durability, sharded),
        stragglers=_stragglers(check, spec, sharded),
    )
    if sharded and done.checkpoint_steps:
        check.add("spec.checkpoint_steps", f"is not for {strategy or 'this strategy'}: parameter shards hold its state")
    if done.stragglers.drops and done.shards > 1 and (done.clip_norm or done.optimizer.name == "lamb"):
        check.add(
            "spec.stragglers.policy", "cannot be drop on many shards with clip_norm or lamb: a step needs them all"
        )
    if done.durability.mode == "replicated" and done.shards == 1:
        check.add("spec.shards", "must be 2 at least: each has a copy on another one")
    if done.durability.mode == "checkpoint" and not done.consistency.waits and done.shards > 1:
        check.add("spec.durability.mode", "cannot be checkpoint with asp on many shards: they are never at one step")
    check.name("spec.optimizer.name", done.optimizer.name)
    if done.alias and not done.register_as:
        check.add("spec.alias", "needs register_as: an alias points at a registered version")
    if done.alias.isdecimal():
        check.add("spec.alias", "must not be a number")
    check.fit(done)
    check.conclude()
    return done


def _model(check: "_Problems", model: Component) -> Component:
    if not check.plugin("spec.model.name", model.name, models):
        return model
    kind = plugins.load(models, model.name, Model)
    return Component(
        name=model.name, parameters=check.parameters("spec.model.parameters", kind.Config, model.parameters)
    )


def _optimizer(check: "_Problems", optimizer: Component, sharded: bool) -> Component:
    """With all its hyperparameters, unless it is for parameter servers to fill them in."""
    name = optimizer.name or "adam"
    if sharded or not check.one_of("spec.optimizer.name", name, tuple(optimizers.KINDS)):
        return Component(name=name, parameters=dict(optimizer.parameters))
    config = optimizers.KINDS[name].config
    return Component(name=name, parameters=check.parameters("spec.optimizer.parameters", config, optimizer.parameters))


def _consistency(check: "_Problems", asked: Consistency, sharded: bool) -> Consistency:
    done = dataclasses.replace(asked, mode=asked.mode or "bsp")
    if not sharded:
        _only_sharded(check, "spec.consistency.mode", done.mode != "bsp", "the workers make every step together: bsp")
        _only_sharded(check, "spec.consistency.arrival_order", done.arrival_order, "the order of a sum is its own")
    if not check.one_of("spec.consistency.mode", done.mode, MODES):
        return done
    check.number("spec.consistency.staleness", done.staleness, 0, MAX_STALENESS)
    if done.staleness and done.mode != "ssp":
        check.add("spec.consistency.staleness", f"is for ssp, not {done.mode}")
    if done.arrival_order and not done.rounds:
        check.add("spec.consistency.arrival_order", f"is for bsp: with {done.mode} gradients are applied as they come")
    return done


def _stragglers(check: "_Problems", spec: JobSpec, sharded: bool) -> Stragglers:
    asked, way = spec.stragglers, spec.consistency
    field, policy = "spec.stragglers.policy", asked.policy or "wait"
    check.one_of(field, policy, STRAGGLERS)
    if policy != "wait":
        if not sharded:
            _only_sharded(check, field, True, "the workers wait for each other")
        elif not way.rounds:
            check.add(field, f"must be wait with {way.mode[:40]}: nobody else's steps need a late worker")
        elif spec.durability.mode == "replicated":
            check.add(field, "must be wait with replicated: each copy would decide by itself")
    if policy == "drop":
        if way.arrival_order:
            check.add(field, "cannot be drop with arrival_order: what was added up stays")
        if (spec.workers or 1) < 2:
            check.add(field, "cannot be drop with 1 worker, which is always waited for")
        else:
            check.number("spec.stragglers.most", asked.most, 1, spec.workers - 1)
    elif asked.most:
        check.add("spec.stragglers.most", f"is for drop, not {policy[:40]!r}")
    check.number("spec.stragglers.after_seconds", asked.after_seconds, 0.0, MAX_STRAGGLING)
    if policy == "fail" and not asked.after_seconds:
        check.add("spec.stragglers.after_seconds", "must be more than 0 with fail")
    if policy == "wait" and asked.after_seconds:
        check.add("spec.stragglers.after_seconds", "is for drop or fail")
    return dataclasses.replace(asked, policy=policy)


def _schedule(check: "_Problems", asked: Component) -> Component:
    return _component(check, "spec.schedule", asked.name or CONSTANT, asked.parameters, schedules, Schedule)


def _codec(check: "_Problems", asked: Component, sharded: bool) -> Component:
    name = asked.name or EXACT
    if not sharded:
        _only_sharded(check, "spec.codec.name", name != EXACT, "gradients travel as fp32 among workers")
    if name != AUTO:
        known = (*plugins.names(codecs), AUTO)
        return _component(check, "spec.codec", name, asked.parameters, codecs, Codec, known)
    for parameter in asked.parameters:
        check.add(f"spec.codec.parameters.{parameter[:64]}", "is unknown: auto has no parameters")
    return Component(name=name)


def _component(
    check: "_Problems",
    field: str,
    name: str,
    given: Mapping[str, Any],
    package: ModuleType,
    base: type[Any],
    known: tuple[str, ...] = (),
) -> Component:
    """A plug-in with all its parameters."""
    if not check.one_of(f"{field}.name", name, known or tuple(plugins.names(package))):
        return Component(name=name, parameters=dict(given))
    kind = plugins.load(package, name, base)
    return Component(name=name, parameters=check.parameters(f"{field}.parameters", kind.Config, given))


def _durability(check: "_Problems", asked: Durability, sharded: bool) -> Durability:
    field, mode = "spec.durability.mode", asked.mode or "none"
    if not sharded:
        _only_sharded(check, field, mode != "none", "workers go on from their checkpoints: see checkpoint_steps")
    check.one_of(field, mode, DURABILITIES)
    if asked.fsync and mode != "wal":
        check.add("spec.durability.fsync", f"is for wal, not {mode[:40]!r}")
    steps = asked.interval_steps
    if mode != "checkpoint" and steps:
        check.add("spec.durability.interval_steps", f"is for checkpoint, not {mode[:40]!r}")
    elif mode == "checkpoint":
        steps = check.number("spec.durability.interval_steps", steps or INTERVAL_STEPS, 1, 10**9)
    return Durability(mode=mode, fsync=asked.fsync, interval_steps=steps)


def _shards(spec: JobSpec) -> int:
    """Shards of a job that does not say how many."""
    return 2 if spec.durability.mode == "replicated" else 1


def _only_sharded(check: "_Problems", field: str, given: bool, why: str) -> None:
    """Refuse what only parameter servers can do."""
    if given:
        check.add(field, f"is for strategies with parameter shards; here {why}")


def _dataset(check: "_Problems", dataset: Dataset) -> Dataset:
    for field in ("format", "label_column", "text_column"):
        check.text(f"spec.dataset.{field}", getattr(dataset, field))
        if dataset.builtin and getattr(dataset, field):
            check.add(f"spec.dataset.{field}", "is for artifacts only")
    if bool(dataset.builtin) == bool(dataset.artifact):
        check.add("spec.dataset", "must name either a built-in data set or an artifact")
    elif dataset.builtin:
        check.one_of("spec.dataset.builtin", dataset.builtin, tuple(builtin.CATALOGUE))
    else:
        check.digest("spec.dataset.artifact", dataset.artifact)
        if dataset.format and check.one_of("spec.dataset.format", dataset.format, FORMATS):
            _columns(check, dataset)
        if dataset.text_column and dataset.text_column == (dataset.label_column or "label"):
            check.add("spec.dataset.text_column", "must be another column than the label's")
        return dataclasses.replace(dataset, label_column=dataset.label_column or "label")
    return dataset


def _columns(check: "_Problems", dataset: Dataset) -> None:
    """Names of columns are for formats that have some."""
    default = Options()
    if not plugins.load(datasets, dataset.format, Reader).has_columns:
        for field in ("label_column", "text_column"):
            if getattr(dataset, field) not in ("", getattr(default, field)):
                check.add(f"spec.dataset.{field}", f"is for tables: {dataset.format} has no columns")


def _split(check: "_Problems", split: Split) -> Split:
    done = Split(
        validation=check.number("spec.split.validation", split.validation or 0.1, 0.0, 0.5),
        test=check.number("spec.split.test", split.test or 0.1, 0.0, 0.5),
    )
    if done.validation + done.test >= 1:
        check.add("spec.split", "leaves no samples to train on")
    return done


class _Problems:
    """Collects what is wrong; its checks return the value that they were given."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def add(self, field: str, problem: str) -> None:
        """Note that something is wrong with `field`; the first problem of a field counts."""
        self._found.setdefault(field, problem)

    def conclude(self) -> None:
        """Raise `Invalid` when something was wrong."""
        if self._found:
            text = "; ".join(f"{field}: {problem}" for field, problem in self._found.items())
            raise Invalid(text, reason="INVALID_SPEC", violations=self._found)

    def number(self, field: str, value: Any, low: float, high: float) -> Any:
        """A finite number in [low, high]."""
        if not (math.isfinite(value) and low <= value <= high):
            self.add(field, f"must be in [{low}, {high}], not {value}")
        return value

    def text(self, field: str, value: str) -> str:
        """At most 128 printable characters."""
        if len(value) > 128 or not value.isprintable():
            self.add(field, "must be at most 128 printable characters")
        return value

    def name(self, field: str, value: str) -> str:
        """A valid name, or nothing."""
        if value:
            self._try(lambda: names.check(value, field))
        return value

    def resource(self, field: str, value: str, collection: str) -> str:
        """A resource name `{collection}/{name}`, or nothing."""
        if value:
            self._try(lambda: names.split(value, collection, field=field))
        return value

    def digest(self, field: str, value: str) -> str:
        """A SHA-256."""
        self._try(lambda: names.check_digest(value, field))
        return value

    def one_of(self, field: str, value: str, known: tuple[str, ...]) -> bool:
        """One of `known`."""
        if value not in known:
            self.add(field, f"must be one of {', '.join(known)}, not {value[:40]!r}" if value else "must not be empty")
        return value in known

    def plugin(self, field: str, value: str, package: ModuleType) -> str:
        """The name of a plug-in of `package`; "" when it is not."""
        return value if self.one_of(field, value, tuple(plugins.names(package))) else ""

    def parameters(self, field: str, kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters with their defaults, as JSON knows them."""
        try:
            filled = dataclasses.asdict(config.from_mapping(kind, given, field))
        except Invalid as error:
            for name, problem in (error.violations or {"": error.message}).items():
                self.add(name if name.startswith(field) else f"{field}.{name}".rstrip("."), problem)
            return dict(given)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in filled.items()}

    def fit(self, spec: JobSpec) -> None:
        """Whether the model can take the samples, when both are known."""
        known = builtin.CATALOGUE.get(spec.dataset.builtin)
        if known is None or any(field.startswith("spec.model") for field in self._found):
            return
        kind = plugins.load(models, spec.model.name, Model)
        filled = config.from_mapping(kind.Config, spec.model.parameters)
        try:
            kind.check(filled, known.sample_shape, known.dtype, known.classes)
        except Invalid as error:
            self.add("spec.model", error.message)

    def _try(self, check: Any) -> None:
        try:
            check()
        except Invalid as error:
            for field, problem in error.violations.items():
                self.add(field, problem)
