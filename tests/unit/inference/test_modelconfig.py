"""Configurations of models: what is read, what is refused, and what is made of them."""

from collections.abc import Callable, Mapping

import pytest

from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration, ControlKind, DynamicBatching, Isolation, TimeoutAction
from tidemill.inference.modelconfig.complete import complete
from tidemill.inference.modelconfig.declared import Declared
from tidemill.inference.modelconfig.text import MAX_BYTES, from_json, from_text
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors.dtypes import DataType

SIMPLE = """
name: "simple"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


def configuration(text: str, files: Mapping[str, bytes] | None = None, name: str = "simple") -> Configuration:
    """What a text makes of a model with these files."""
    declared = Declared(name, text.encode())
    given = files or {"model.onnx": b""}

    def read(path: str) -> bytes:
        if path not in given:
            raise Invalid(f"no file {path}")
        return given[path]

    return declared.configuration(declared.kind(list(given)), read)


def signature(*shape: int, inputs: tuple[str, ...] = ("x",)) -> Signature:
    """Of a model with a few inputs and the output y, all FP32 of one shape."""
    return Signature(
        tuple(TensorSpec(name, DataType.FP32, shape) for name in inputs), (TensorSpec("y", DataType.FP32, shape),)
    )


def test_reads_what_a_repository_says() -> None:
    found = configuration(
        SIMPLE
        + """
        dynamic_batching {
          preferred_batch_size: [ 8, 4 ]
          max_queue_delay_microseconds: 1500
          preserve_ordering: true
          priority_levels: 2
          default_priority_level: 2
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 500000 max_queue_size: 16 }
          priority_queue_policy { key: 1 value { allow_timeout_override: true } }
        }
        instance_group [ { count: 3 kind: KIND_CPU } ]
        response_cache { enable: true }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        parameters { key: "isolation" value { string_value: "process" } }
        """
    )
    assert (found.name, found.backend, found.platform, found.max_batch) == ("simple", "onnx", "onnxruntime_onnx", 8)
    assert (found.instances, found.threads, found.cache, found.isolation) == (3, 2, True, Isolation.PROCESS)
    assert found.dynamic is not None
    assert (found.dynamic.preferred, found.dynamic.delay, found.dynamic.preserve_order) == ((4, 8), 0.0015, True)
    assert found.dynamic.policy.action is TimeoutAction.DELAY
    assert (found.dynamic.policy.timeout, found.dynamic.policy.size) == (0.5, 16)
    assert found.dynamic.policies[1].allow_override
    assert found.signature.inputs == (TensorSpec("x", DataType.FP32, (-1, 2)),)


def test_reads_sequences() -> None:
    found = configuration(
        SIMPLE
        + """
        sequence_batching {
          max_sequence_idle_microseconds: 2000000
          oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 100 }
          control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
          control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
          state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ 2 ]
                  initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 2 ] data_file: "s0" } }
        }
        """,
        {"model.onnx": b"", "initial_state/s0": b"12345678"},
    )
    sequence = found.sequence
    assert sequence is not None
    assert sequence.oldest is not None
    assert (sequence.idle, sequence.candidates, sequence.oldest.preferred) == (2.0, 4, (2,))
    assert [(c.name, c.kind, c.datatype) for c in sequence.controls] == [
        ("START", ControlKind.START, DataType.INT32),
        ("ID", ControlKind.CORRID, DataType.UINT64),
    ]
    assert (sequence.states[0].initial, sequence.states[0].initial_dims) == (b"12345678", (2,))


def test_reads_labels_and_warm_ups() -> None:
    found = configuration(
        """
        platform: "onnxruntime_onnx"
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
        model_warmup [ { name: "w" count: 3 inputs { key: "x" value {
            data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "raw" } } } ]
        """,
        {"model.onnx": b"", "labels.txt": b"cat\ndog\n", "warmup/raw": b"12345678"},
    )
    assert found.labels("y") == ("cat", "dog")
    assert (found.warmups[0].count, found.warmups[0].rows) == (3, 1)
    assert found.warmups[0].inputs["x"].data == b"12345678"


def test_accelerators_are_execution_providers() -> None:
    found = configuration(
        SIMPLE
        + """
        instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]
        optimization { execution_accelerators { gpu_execution_accelerator [ {
          name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } ] } }
        """
    )
    assert [name for name, _ in found.providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert found.providers[0][1] == {"device_id": "1", "trt_fp16_enable": "1"}
    assert found.gpus == (1,)


ENSEMBLE = """
platform: "ensemble"
input [ { name: "a" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "c" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling { step [
  { model_name: "one" model_version: -1 input_map { key: "x" value: "a" } output_map { key: "y" value: "b" } },
  { model_name: "two" model_version: 3 input_map { key: "x" value: "b" } output_map { key: "y" value: "c" } } ] }
"""


def test_reads_ensembles() -> None:
    found = configuration(ENSEMBLE, {})
    assert found.backend == "ensemble"
    assert [(step.model, step.version) for step in found.steps] == [("one", ""), ("two", "3")]


@pytest.mark.parametrize(
    ("backend", "files", "runtime"),
    [
        ("", ["model.onnx"], "onnx"),
        ("", ["model.pt"], "torchscript"),
        ("", ["model.pt2"], "torchexport"),
        ("", ["model.py"], "python"),
        ('backend: "pytorch"', ["model.pt2"], "torchexport"),
        ('backend: "pytorch"', ["model.pt"], "torchscript"),
        ('platform: "pytorch_libtorch"', ["model.pt"], "torchscript"),
        ('backend: "onnxruntime" default_model_filename: "net.onnx"', ["net.onnx"], "onnx"),
        ('backend: "pytorch" default_model_filename: "net.pt2"', ["net.pt2"], "torchexport"),
        ('backend: "python"', ["model.py"], "python"),
    ],
)
def test_backend_platform_or_files_tell_the_runtime(backend: str, files: list[str], runtime: str) -> None:
    declared = Declared("m", backend.encode())
    assert declared.kind(files).runtime == runtime


@pytest.mark.parametrize("files", [[], ["weights.bin"], ["model.onnx", "model.py"]])
def test_files_that_do_not_tell_the_runtime(files: list[str]) -> None:
    with pytest.raises(Invalid, match="no backend is named"):
        Declared("m", b"").kind(files)


def tensors(change: str) -> str:
    """SIMPLE with another input."""
    return SIMPLE.replace('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }', change)


WRONG = {
    "another name than its folder": SIMPLE.replace('"simple"', '"other"'),
    "unknown field": SIMPLE + "colour: 3",
    "not text": "\x00\xff",
    "half a message": "input [ {",
    "negative batch": SIMPLE.replace("max_batch_size: 8", "max_batch_size: -1"),
    "no datatype": tensors('{ name: "x" dims: [ 2 ] }'),
    "no dims": tensors('{ name: "x" data_type: TYPE_FP32 }'),
    "zero dims": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 0 ] }'),
    "dims below -1": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ -2 ] }'),
    "huge dims": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 9223372036854775807 ] }'),
    "many dims": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 1,1,1,1,1,1,1,1,1 ] }'),
    "no name": tensors("{ data_type: TYPE_FP32 dims: [ 2 ] }"),
    "control characters": tensors('{ name: "x\\n" data_type: TYPE_FP32 dims: [ 2 ] }'),
    "twice": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }'),
    "ragged": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] allow_ragged_batch: true }'),
    "shape tensor": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] is_shape_tensor: true }'),
    "image of two dims": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] format: FORMAT_NCHW }'),
    "reshape to more": tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] reshape { shape: [ 3 ] } }'),
    "preferred above the largest": SIMPLE + "dynamic_batching { preferred_batch_size: [ 9 ] }",
    "preferred zero": SIMPLE + "dynamic_batching { preferred_batch_size: [ 0 ] }",
    "default level": SIMPLE + "dynamic_batching { priority_levels: 2 }",
    "level above": SIMPLE
    + "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} } }",
    "specific nothing": SIMPLE + "version_policy { specific {} }",
    "specific negative": SIMPLE + "version_policy { specific { versions: [ -1 ] } }",
    "custom operators": SIMPLE + 'model_operations { op_library_filename: "/lib/evil.so" }',
    "agents": SIMPLE + 'model_repository_agents { agents { name: "checksum" } }',
    "batch inputs": SIMPLE + 'batch_input { kind: BATCH_ITEM_SHAPE target_name: "s" source_input: "x" }',
    "profiles": SIMPLE + 'instance_group [ { profile: [ "1" ] } ]',
    "many instances": SIMPLE + "instance_group [ { count: 100000 } ]",
    "negative instances": SIMPLE + "instance_group [ { count: -1 } ]",
    "label file outside": SIMPLE.replace("dims: [ 2 ] } ]\n", 'dims: [ 2 ] label_filename: "../../etc/passwd" } ]\n'),
    "warm-up file outside": SIMPLE
    + 'model_warmup [ { inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "../x" } } } ]',
    "warm-up of nothing": SIMPLE + "model_warmup [ { count: 1 } ]",
    "warm-up of another input": SIMPLE
    + 'model_warmup [ { inputs { key: "q" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } } ]',
    "model file outside": SIMPLE + 'default_model_filename: "../model.onnx"',
    "cache of sequences": SIMPLE + "response_cache { enable: true } sequence_batching {}",
    "cache of streams": SIMPLE + "response_cache { enable: true } model_transaction_policy { decoupled: true }",
    "two schedulers": SIMPLE + "dynamic_batching {} sequence_batching {}",
    "control without values": SIMPLE
    + 'sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_START } } }',
    "control of three values": SIMPLE
    + 'sequence_batching { control_input { name: "S" control { int32_false_true: [ 0, 1, 2 ] } } }',
    "control twice": SIMPLE
    + 'sequence_batching { control_input { name: "S" control { int32_false_true: [ 0, 1 ] } } '
    + 'control_input { name: "T" control { int32_false_true: [ 0, 1 ] } } }',
    "control as input": SIMPLE
    + 'sequence_batching { control_input { name: "x" control { int32_false_true: [ 0, 1 ] } } }',
    "correlation as float": SIMPLE
    + 'sequence_batching { control_input { name: "C" control { kind: CONTROL_SEQUENCE_CORRID '
    + "data_type: TYPE_FP32 } } }",
    "iterative": SIMPLE + "sequence_batching { iterative_sequence: true }",
    "utilization": SIMPLE + "sequence_batching { direct { minimum_slot_utilization: 1.5 } }",
    "ensemble of nothing": ENSEMBLE.split("ensemble_scheduling", maxsplit=1)[0] + "ensemble_scheduling {}",
    "ensemble of itself": ENSEMBLE.replace('"one"', '"simple"'),
    "ensemble that waits": ENSEMBLE.replace('value: "a"', 'value: "c"'),
    "ensemble from nowhere": ENSEMBLE.replace('value: "a"', 'value: "q"'),
    "ensemble to nowhere": ENSEMBLE.replace('value: "c"', 'value: "d"'),
    "ensemble traversal": ENSEMBLE.replace('"one"', '"../one"'),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Declared("simple", text.encode())


@pytest.mark.parametrize(
    "text",
    [
        SIMPLE.replace("onnxruntime_onnx", "tensorrt_plan"),
        SIMPLE + 'backend: "made_up"',
        SIMPLE.replace('platform: "onnxruntime_onnx"', 'backend: "_onnxfile"'),
        SIMPLE.replace("onnxruntime_onnx", "ensemble"),
        SIMPLE + 'parameters { key: "isolation" value { string_value: "vm" } }',
        SIMPLE + 'parameters { key: "intra_op_thread_count" value { string_value: "-1" } }',
        SIMPLE + 'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "abacus" } ] } }',
        SIMPLE + 'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }',
    ],
)
def test_what_is_not_offered_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        configuration(text)


def test_strangers_may_not_name_programs_or_options_of_libraries() -> None:
    for text, files in (
        ('backend: "python"', ["model.py"]),
        ('platform: "pytorch_libtorch"', ["model.pt"]),
        (ENSEMBLE, []),
        (
            'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" '
            'parameters { key: "cache_dir" value: "/tmp" } } ] } }',
            ["model.onnx"],
        ),
    ):
        declared = Declared("m", text.encode())
        with pytest.raises(Invalid):
            declared.configuration(declared.kind(files), lambda path: b"", trusted=False)


@pytest.mark.parametrize("read", [lambda text: from_text(text.encode()), from_json])
@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        "[" * 100_000 + "]" * 100_000,
        '{"input":' * 50_000,
        "input {" * 1000,
        "x" * (MAX_BYTES + 1),
        '{"name": NaN}',
        "[]",
        '{"max_batch_size": 1e400}',
        '{"name": "\\ud800"}',
        '{"version_policy": {"specific": {"versions": [1e30]}}}',
    ],
    ids=range(10),
)
def test_hostile_text_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(Invalid):
        read(text)


def test_json_stands_in_for_the_text() -> None:
    declared = Declared(
        "m", SIMPLE.encode(), '{"backend": "onnxruntime", "maxBatchSize": 2, "versionPolicy": {"all": {}}}'
    )
    assert declared.configuration(declared.kind([]), lambda path: b"").max_batch == 2
    assert declared.policy.choose([3, 1, 2]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", [11]),
        ("version_policy { latest {} }", [11]),
        ("version_policy { latest { num_versions: 2 } }", [9, 11]),
        ("version_policy { all {} }", [1, 2, 9, 11]),
        ("version_policy { specific { versions: [ 2, 9, 77 ] } }", [2, 9]),
    ],
)
def test_version_policies(policy: str, chosen: list[int]) -> None:
    assert Declared("m", policy.encode()).policy.choose([11, 2, 1, 9]) == chosen


def test_model_with_a_free_first_dimension_takes_batches() -> None:
    found = complete(configuration("", name="m"), signature(-1, 2), "onnxruntime_onnx")
    assert (found.max_batch, found.dynamic) == (4, None)
    assert found.inputs[0].dims == (2,)
    assert found.signature.inputs[0].shape == (-1, 2)
    message = from_text(b"")
    message.ParseFromString(found.tracked)
    assert (message.name, message.backend, message.max_batch_size) == ("m", "onnxruntime", 4)
    assert not message.HasField("dynamic_batching")
    assert list(message.input[0].dims) == [2]
    assert message.version_policy.latest.num_versions == 1
    assert complete(found, signature(-1, 2), "onnxruntime_onnx") == found


def test_calls_are_put_together_by_themselves_on_a_gpu_only() -> None:
    text = "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]"
    found = complete(configuration(text, name="m"), signature(-1, 2), "onnxruntime_onnx")
    assert found.dynamic == DynamicBatching()
    message = from_text(b"")
    message.ParseFromString(found.tracked)
    assert list(message.dynamic_batching.preferred_batch_size) == [4]


def test_model_with_fixed_dimensions_takes_none() -> None:
    found = complete(configuration("", name="m"), signature(3, 2), "onnxruntime_onnx")
    assert (found.max_batch, found.dynamic, found.inputs[0].dims) == (0, None, (3, 2))
    with pytest.raises(Invalid, match="autofill failed for model 'm': model does not support batching"):
        complete(configuration("max_batch_size: 4", name="m"), signature(3, 2), "onnxruntime_onnx")


def test_configuration_wins_where_it_says_something() -> None:
    text = SIMPLE.replace("max_batch_size: 8", "").replace("dims: [ 2 ]", "dims: [ -1, 2 ]")
    found = complete(configuration(text), signature(-1, 2), "onnxruntime_onnx")
    assert (found.max_batch, found.dynamic, found.inputs[0].dims) == (0, None, (-1, 2))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SIMPLE, signature(-1, 3)),
        (SIMPLE, signature(1, 2)),
        (SIMPLE, signature(-1, 2, 2)),
        (SIMPLE, signature(-1, 2, inputs=("z",))),
        (SIMPLE, signature(-1, 2, inputs=("x", "z"))),
        (SIMPLE.replace("TYPE_FP32", "TYPE_INT8"), signature(-1, 2)),
        (SIMPLE.replace('"y"', '"z"'), signature(-1, 2)),
    ],
)
def test_configuration_that_is_not_the_models_is_refused(text: str, found: Signature) -> None:
    with pytest.raises(Invalid, match="model 'simple'"):
        complete(configuration(text), found, "onnxruntime_onnx")


def test_reshape_is_held_against_the_model() -> None:
    text = tensors('{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] reshape { shape: [ 1, 2 ] } }')
    inputs = (TensorSpec("x", DataType.FP32, (-1, 1, 2)),)
    found = complete(
        configuration(text), Signature(inputs, (TensorSpec("y", DataType.FP32, (-1, 2)),)), "onnxruntime_onnx"
    )
    assert found.signature.inputs[0].shape == (-1, 2)


def test_control_inputs_are_not_the_clients() -> None:
    text = """sequence_batching { control_input { name: "S" control { fp32_false_true: [ 0, 1 ] } } }"""
    found = complete(configuration(text, name="m"), signature(-1, 1, inputs=("x", "S")), "onnxruntime_onnx")
    assert [tensor.name for tensor in found.inputs] == ["x"]
    assert found.dynamic is None
