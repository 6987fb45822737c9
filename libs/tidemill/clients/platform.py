"""The whole platform from Python, synchronously: train, follow, deploy, predict.

from tidemill.clients.platform import Tidemill

with Tidemill() as tidemill:
    job = tidemill.train("cnn", "digits", workers=2, register_as="digits", alias="champion")
    print(job.result.test.accuracy, tidemill.predict("digits", images))
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tidemill import config, errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.blocking import Blocking
from tidemill.clients.inference import InferenceClient
from tidemill.clients.registry import RegistryClient
from tidemill.clients.training import TrainingClient
from tidemill.rpc.loop import LoopThread
from tidemill.tensors import dtypes

if TYPE_CHECKING:
    import numpy as np

DEFAULTS = {
    "registry": "127.0.0.1:7101",
    "artifacts": "127.0.0.1:7102",
    "training": "127.0.0.1:7103",
    "inference": "127.0.0.1:8001",
}
_CLIENTS: dict[str, Callable[[str], Any]] = {
    "registry": RegistryClient,
    "artifacts": ArtifactsClient,
    "training": TrainingClient,
    "inference": InferenceClient,
}


class Tidemill:
    """One connection to all services.

    `registry`, `artifacts`, `training` and `inference` are the clients of the services with waiting methods; what most
    scripts need is here. Errors are those of `tidemill.errors`.

    Args:
        addresses: service -> `host:port`; for the others `TIDEMILL_<SERVICE>_ADDRESS`, or else the default port here.
    """

    def __init__(self, **addresses: str) -> None:
        unknown = addresses.keys() - DEFAULTS.keys()
        if unknown:
            raise errors.Invalid(f"unknown services: {', '.join(sorted(unknown))}")
        variables = config.environ()
        self._loop = LoopThread()
        self._made: dict[str, Any] = self._loop.run(
            _make(
                {
                    name: addresses.get(name) or variables.get(f"TIDEMILL_{name.upper()}_ADDRESS") or default
                    for name, default in DEFAULTS.items()
                }
            )
        )
        self.registry = Blocking(self._made["registry"], self._loop)
        self.artifacts = Blocking(self._made["artifacts"], self._loop)
        self.training = Blocking(self._made["training"], self._loop)
        self.inference = Blocking(self._made["inference"], self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all channels; closing again changes nothing, and any other call raises FailedPrecondition then."""
        if self._made:
            self._loop.run(_close(self._made))
            self._made = {}
            self._loop.close()

    def upload_dataset(self, *paths: str | Path) -> str:
        """The digest of a data-set artifact made of these files (`.npz`, `.csv`, or MNIST's IDX files).

        Raises:
            Invalid: two of them have the same name.
            OSError: one cannot be read.
        """
        files = {Path(path).name: Path(path) for path in paths}
        if len(files) < len(paths):
            raise errors.Invalid("data set: two files have the same name", reason="NAME_TAKEN")
        return str(self.artifacts.create_artifact("dataset", files).digest)

    def train(
        self,
        model: str,
        dataset: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        register_as: str = "",
        progress: Callable[[pb.Job], None] | None = None,
        **spec: Any,
    ) -> pb.Job:
        """Train and wait; the job after it has succeeded.

        Args:
            model: `mlp`, `cnn` or `text`.
            dataset: name of a built-in data set, or digest of an artifact.
            parameters: hyperparameters of the model.
            register_as: name of the model to register the result under; "" = none.
            progress: called with the job after every change; it may use this connection too.
            spec: further fields of `tidemill.api.training.v1.JobSpec`: `workers`, `shards`, `epochs`, `alias` ...

        Raises:
            Invalid: something in the spec is wrong.
            FailedPrecondition: with reason JOB_FAILED or JOB_CANCELLED, when it did not succeed.
        """
        source = "artifact" if len(dataset) == 64 else "builtin"
        wanted = {
            "model": {"name": model, "parameters": dict(parameters or {})},
            "dataset": {source: dataset},
            "register_as": f"models/{register_as}" if register_as else "",
            **spec,
        }
        job: pb.Job = self.training.create_job(wanted)
        with closing(self.training.watch_job(job.name)) as jobs:
            for now in jobs:
                job = now
                if progress is not None:
                    progress(job)
        if job.state != pb.Job.STATE_SUCCEEDED:
            reason = "JOB_CANCELLED" if job.state == pb.Job.STATE_CANCELLED else "JOB_FAILED"
            raise errors.FailedPrecondition(f"{job.name}: {job.error or 'was cancelled'}", reason=reason)
        return job

    def deploy(self, model: str, version: int, alias: str = "champion") -> None:
        """Point an alias at a version; inference follows within moments."""
        self.registry.set_alias(model, alias, version)

    def predict(
        self, model: str, inputs: "np.ndarray | Mapping[str, np.ndarray]", *, version: str = ""
    ) -> "np.ndarray | dict[str, np.ndarray]":
        """What a served model says: an array for an array (the model's one input and output), else all outputs by name.

        Args:
            model: name of the model.
            inputs: its inputs by name, or the only one; numbers become what the model takes where they can.
            version: number or alias; "" = the server's choice.

        Raises:
            NotFound: no such model or version is served.
            Invalid: the inputs are not what the model takes.
        """
        metadata = self.inference.metadata(model, version)
        kinds = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        named = inputs if isinstance(inputs, Mapping) else {next(iter(kinds)): inputs}
        fitted = {name: dtypes.fit(array, kinds[name]) if name in kinds else array for name, array in named.items()}
        outputs: dict[str, np.ndarray] = self.inference.infer(model, fitted, version=version).outputs
        return outputs if isinstance(inputs, Mapping) else next(iter(outputs.values()))


async def _make(addresses: Mapping[str, str]) -> dict[str, Any]:
    return {name: _CLIENTS[name](address) for name, address in addresses.items()}


async def _close(clients: Mapping[str, Any]) -> None:
    for client in clients.values():
        await client.close()
