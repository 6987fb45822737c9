"""The configuration of one model as its owner wrote it, read and checked."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration
from tidemill.inference.modelconfig import checks, text
from tidemill.inference.modelconfig.convert import Read, to_configuration
from tidemill.inference.modelconfig.platforms import ENSEMBLE, Platform, find

FILE = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: those in `specific`, or the `latest` highest ones; all when both are None."""

    latest: int | None = None
    specific: frozenset[int] | None = None

    def choose(self, numbers: Iterable[int]) -> list[int]:
        """Those of `numbers` that are served, rising."""
        known = sorted(numbers)
        if self.specific is not None:
            return [number for number in known if number in self.specific]
        return known if self.latest is None else known[-self.latest :]


class Declared:
    """What the owner of a model says of it.

    Args:
        folder: name of the model.
        written: its `config.pbtxt`; None when there is none.
        override: JSON of a request that stands in for that; "" = nothing does.

    Raises:
        Invalid: it cannot be read, contradicts itself, or asks for what is not offered.
    """

    def __init__(self, folder: str, written: bytes | None, override: str = "") -> None:
        if override:
            message = text.from_json(override)
        else:
            message = text.from_text(written) if written is not None else pb.ModelConfig()
        checks.check(message, folder)
        message.name = folder
        self._message = message
        self._overridden = bool(override)
        self.filename: str = message.default_model_filename
        self.policy = _policy(message.version_policy)

    @property
    def ensemble(self) -> bool:
        """Whether it is made of other models, and so has no files."""
        return self._message.HasField("ensemble_scheduling")

    @property
    def files(self) -> list[str]:
        """Paths, in the folder of the model, of the files that it names: labels, samples, states."""
        found = [tensor.label_filename for tensor in self._message.output if tensor.label_filename]
        found += [
            f"warmup/{tensor.input_data_file}"
            for sample in self._message.model_warmup
            for tensor in sample.inputs.values()
            if tensor.HasField("input_data_file")
        ]
        found += [
            f"initial_state/{initial.data_file}"
            for state in self._message.sequence_batching.state
            for initial in state.initial_state
            if initial.HasField("data_file")
        ]
        return list(dict.fromkeys(found))

    def kind(self, files: Collection[str]) -> Platform:
        """What kind of model it is, with files of these names in the version's folder. Raises Invalid."""
        if self.ensemble != (self._message.platform == ENSEMBLE):
            raise Invalid("ensemble_scheduling and platform 'ensemble' go together", reason="INVALID_CONFIG")
        return find(self._message.backend, self._message.platform, self.filename, files)

    def configuration(self, kind: Platform, read: Read, *, trusted: bool = True) -> Configuration:
        """How it is run.

        Args:
            kind: as `kind` says.
            read: for the files that it names.
            trusted: whether it may name programs, and options by which a library may read or write files.

        Raises:
            Invalid: a file is missing or wrong, or it asks for more than it may.
        """
        if not trusted and (kind.code or self.ensemble):
            raise Invalid(
                f"models of the platform '{kind.platform or kind.backend}' are served from the operator's own "
                "repository only",
                reason="NOT_TRUSTED",
            )
        if not trusted or self._overridden:
            self._check_options()
        return to_configuration(self._message, kind, read)

    def _check_options(self) -> None:
        """Return when nothing is asked for by which a library may read or write files. Raises Invalid."""
        chosen = self._message.optimization.execution_accelerators
        accelerators = (*chosen.gpu_execution_accelerator, *chosen.cpu_execution_accelerator)
        if any(accelerator.parameters for accelerator in accelerators):
            raise Invalid("options of accelerators are for the operator's own repository only", reason="NOT_TRUSTED")


def _policy(policy: pb.ModelVersionPolicy) -> VersionPolicy:
    if policy.HasField("specific"):
        return VersionPolicy(specific=frozenset(policy.specific.versions))
    if policy.HasField("all"):
        return VersionPolicy()
    return VersionPolicy(latest=policy.latest.num_versions or 1)
