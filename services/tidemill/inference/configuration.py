"""How one model version is to be run: what its owner wrote, completed from the model file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors.dtypes import DataType

BATCH = -1
"""First dimension of every tensor of a model that takes batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfiguration:
    """One input or output, as the model's owner declares it.

    Args:
        name, datatype: as in requests.
        dims: dimensions without that of the batch, -1 for those of any size.
        reshape: dimensions in which the runtime takes or gives it, without that of the batch; None = `dims`.
        optional: whether a request may leave it out (inputs).
        labels: names of the classes, by index (outputs); empty when there are none.
    """

    name: str
    datatype: DataType
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()


class TimeoutAction(Enum):
    """What becomes of a request that has waited for too long."""

    REJECT = "REJECT"
    """It is answered with an error."""
    DELAY = "DELAY"
    """It runs when no request is left that has not waited for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """Limits of one queue.

    Args:
        action: what becomes of a request whose time in the queue is over.
        timeout: longest time in the queue in seconds; 0 = any.
        allow_override: whether a request may ask for a shorter time.
        size: most requests in the queue; 0 = the server's own bound.
    """

    action: TimeoutAction = TimeoutAction.REJECT
    timeout: float = 0.0
    allow_override: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatching:
    """Requests are put together while they wait.

    Args:
        preferred: sizes at which a batch is closed at once, rising; empty = only the model's largest.
        delay: longest time in seconds for which a batch that has no preferred size waits for more.
        preserve_order: whether answers leave in the order in which requests came.
        levels: priority levels, 1 being the most urgent; 0 = there is only one.
        default_level: of requests that name none.
        policy: of the queue of every level that has no own one.
        policies: by level.
    """

    preferred: tuple[int, ...] = ()
    delay: float = 0.0
    preserve_order: bool = False
    levels: int = 0
    default_level: int = 0
    policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)


class ControlKind(Enum):
    """What a control input tells the model of a sequence."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control input, which the server fills.

    Args:
        name: of the model's input; its shape is [1] without the dimension of the batch.
        kind: what it tells.
        datatype: INT32, FP32 or BOOL; for CORRID one of INT32, INT64, UINT32, UINT64 and BYTES.
        false, true: its values; not used for CORRID.
    """

    name: str
    kind: ControlKind
    datatype: DataType
    false: float = 0
    true: float = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceState:
    """Implicit state: an output of one request that becomes an input of the sequence's next one.

    Args:
        input, output: the model's names.
        datatype, dims: of both, without the dimension of the batch.
        initial: bytes with which a sequence begins (raw, of one row); None = zeros.
        initial_dims: of these bytes, or of the zeros; None = `dims`.
    """

    input: str
    output: str
    datatype: DataType
    dims: tuple[int, ...]
    initial: bytes | None = None
    initial_dims: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatching:
    """Requests with the same correlation id run one after the other, in order.

    Args:
        idle: seconds after which a sequence that is not heard of is given up.
        controls: inputs that the server fills.
        states: outputs that become inputs.
        oldest: None = each sequence has a slot of an instance for itself (the direct strategy); else how the requests
            of the oldest sequences are put together.
        candidates: most sequences at a time with the oldest strategy; 0 = the server's own bound.
        delay: longest time in seconds for which a batch of slots waits with the direct strategy.
        utilization: part of the slots that must be filled for a batch to run before `delay`, 0 to 1.
    """

    idle: float = 1.0
    controls: tuple[Control, ...] = ()
    states: tuple[SequenceState, ...] = ()
    oldest: DynamicBatching | None = None
    candidates: int = 0
    delay: float = 0.0
    utilization: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One model of an ensemble.

    Args:
        model, version: which; version "" = the one that serves.
        inputs: the model's input -> tensor of the ensemble.
        outputs: the model's output -> tensor of the ensemble.
    """

    model: str
    version: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupInput:
    """One input of a warm-up request: zeros, random values, or `data` (raw bytes)."""

    datatype: DataType
    dims: tuple[int, ...]
    random: bool = False
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A request that runs `count` times before a version is READY; `rows` is its batch size."""

    name: str
    rows: int = 1
    count: int = 1
    inputs: Mapping[str, WarmupInput] = field(default_factory=dict)


class Isolation(Enum):
    """Where a model runs."""

    THREAD = "thread"
    """In the server's process."""
    PROCESS = "process"
    """In a process of its own for each instance."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How a version is run.

    Args:
        name: of the model.
        backend: name of the runtime: a file of `runtimes/`; "ensemble" for ensembles.
        platform: kind of model and runtime, as clients of the Open Inference Protocol know it.
        max_batch: most rows of a batch; 0 = the model takes no batches, and shapes have no dimension for them.
        inputs, outputs: in the model's order.
        instances: how many run at a time; 0 = as many as calls come.
        gpus: devices on which to run; empty = the CPU.
        dynamic, sequence, steps: at most one of them: how requests are put together; all unset = they are not.
        decoupled: whether one request may have any number of answers.
        cache: whether answers are kept.
        warmups: run before the version is READY; empty = one run on zeros.
        isolation: where it runs.
        providers: ONNX Runtime's execution providers with their options, the preferred first; empty = the server's.
        threads: inside of one run; 0 = the server's setting.
        parameters: what the owner tells the runtime.
        tracked: the configuration as the protocol's message, serialized; for clients that ask for it.
    """

    name: str
    backend: str
    platform: str = ""
    max_batch: int = 0
    inputs: tuple[TensorConfiguration, ...] = ()
    outputs: tuple[TensorConfiguration, ...] = ()
    instances: int = 0
    gpus: tuple[int, ...] = ()
    dynamic: DynamicBatching | None = None
    sequence: SequenceBatching | None = None
    steps: tuple[Step, ...] = ()
    decoupled: bool = False
    cache: bool = False
    warmups: tuple[Warmup, ...] = ()
    isolation: Isolation = Isolation.THREAD
    providers: tuple[tuple[str, Mapping[str, str]], ...] = ()
    threads: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    tracked: bytes = b""

    @cached_property
    def signature(self) -> Signature:
        """What requests look like: shapes with the dimension of the batch, if there is one."""
        return Signature(tuple(map(self._spec, self.inputs)), tuple(map(self._spec, self.outputs)))

    @cached_property
    def required(self) -> frozenset[str]:
        """Inputs that no request may leave out."""
        return frozenset(tensor.name for tensor in self.inputs if not tensor.optional)

    def labels(self, output: str) -> tuple[str, ...]:
        """Names of the classes of an output, by index; empty when there are none."""
        return next((tensor.labels for tensor in self.outputs if tensor.name == output), ())

    def _spec(self, tensor: TensorConfiguration) -> TensorSpec:
        batch = (BATCH,) if self.max_batch else ()
        return TensorSpec(tensor.name, tensor.datatype, (*batch, *tensor.dims))
