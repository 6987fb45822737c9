"""What the server says of its models: metadata, configuration, statistics, the index."""

from collections.abc import Iterable, Mapping, Sequence

from tidemill.api.compat.inference import model_config_pb2 as mc
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.configuration import Configuration
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Entry
from tidemill.inference.signatures import TensorSpec
from tidemill.inference.statistics import Duration, Responses, Snapshot
from tidemill.tensors.dtypes import DataType


def metadata(loaded: Loaded, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """What a model takes and gives; shapes have the dimension of the batch."""
    return pb.ModelMetadataResponse(
        name=loaded.version.model,
        versions=[str(version) for version in versions],
        platform=loaded.configuration.platform,
        inputs=[_tensor(spec) for spec in loaded.signature.inputs],
        outputs=[_tensor(spec) for spec in loaded.signature.outputs],
    )


def configuration(found: Configuration) -> pb.ModelConfigResponse:
    """How a model runs: what its owner wrote, completed; or what is known of a model that has only a file."""
    if found.tracked:
        return pb.ModelConfigResponse(config=mc.ModelConfig.FromString(found.tracked))
    config = mc.ModelConfig(
        name=found.name, platform=found.platform, backend=found.backend, max_batch_size=found.max_batch
    )
    config.version_policy.latest.num_versions = 1
    for source in found.inputs:
        kind = _type(source.datatype)
        config.input.add(name=source.name, data_type=kind, dims=source.dims, optional=source.optional)
    for target in found.outputs:
        config.output.add(name=target.name, data_type=_type(target.datatype), dims=target.dims)
    if found.decoupled:
        config.model_transaction_policy.decoupled = True
    return pb.ModelConfigResponse(config=config)


def index(entries: Iterable[Entry]) -> pb.RepositoryIndexResponse:
    """The index of the repository."""
    response = pb.RepositoryIndexResponse()
    for entry in entries:
        response.models.add(name=entry.model, version=entry.version, state=entry.state, reason=entry.reason)
    return response


def statistics(versions: Iterable[Loaded], others: Mapping[str, Snapshot]) -> pb.ModelStatisticsResponse:
    """The books of versions.

    Args:
        others: those that other processes keep of copies, by the version's key.
    """
    response = pb.ModelStatisticsResponse()
    for loaded in versions:
        made = response.model_stats.add(name=loaded.version.model, version=loaded.label)
        books = loaded.statistics.snapshot()
        if loaded.key in others:
            books.add(others[loaded.key])
        _put(made, books)
    return response


def _put(made: pb.ModelStatistics, books: Snapshot) -> None:
    made.last_inference = books.last
    made.inference_count = books.inferences
    made.execution_count = books.executions
    made.inference_stats.CopyFrom(
        pb.InferStatistics(
            success=_duration(books.success),
            fail=_duration(books.fail),
            queue=_duration(books.queue),
            compute_input=_duration(books.input),
            compute_infer=_duration(books.infer),
            compute_output=_duration(books.output),
            cache_hit=_duration(books.hit),
            cache_miss=_duration(books.miss),
        )
    )
    for size, runs in sorted(books.batches.items()):
        made.batch_stats.add(
            batch_size=size,
            compute_input=_duration(runs.input),
            compute_infer=_duration(runs.infer),
            compute_output=_duration(runs.output),
        )
    for number, responses in books.responses.items():
        made.response_stats[str(number)].CopyFrom(_responses(responses))


def _responses(books: Responses) -> pb.InferResponseStatistics:
    return pb.InferResponseStatistics(
        compute_infer=_duration(books.infer),
        compute_output=_duration(books.output),
        success=_duration(books.success),
        fail=_duration(books.fail),
        empty_response=_duration(books.empty),
        cancel=_duration(books.cancel),
    )


def _duration(found: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=found.count, ns=found.ns)


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)


def _type(kind: DataType) -> "mc.DataType.ValueType":
    name = "TYPE_STRING" if kind is DataType.BYTES else f"TYPE_{kind.name}"
    return mc.DataType.Value(name)
