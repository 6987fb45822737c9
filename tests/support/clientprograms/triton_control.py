"""tritonclient over gRPC: models that come and go, settings of traces and logs."""

import json

import numpy as np
import tritonclient.grpc as triton

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import fails, grpc_client, pair, summed

checks = Checks()


@checks
def load_and_unload(server: Server) -> None:
    with grpc_client(server) as client, grpc_client(server) as other:
        client.load_model("late")
        same([client.is_model_ready("late"), other.is_model_ready("late")], [True, True])
        summed(other.infer("late", pair(triton)))
        same(client.infer("late", pair(triton)).get_response().model_version, "3")
        client.unload_model("late")
        same([client.is_model_ready("late"), other.is_model_ready("late")], [False, False])
        fails("NOT_FOUND", "Request for unknown model: 'late' ", lambda: other.infer("late", pair(triton)))
        entry = next(model for model in client.get_model_repository_index().models if model.name == "late")
        same([entry.version, entry.state, entry.reason], ["3", "UNAVAILABLE", "unloaded"])
        fails(
            "INTERNAL", "failed to load 'nope', failed to poll from model repository", lambda: client.load_model("nope")
        )
        client.unload_model("late")


@checks
def load_with_another_configuration(server: Server) -> None:
    """Also while it is loaded; the next plain load takes the repository's again."""
    with grpc_client(server) as client:
        client.load_model("late")
        config = client.get_model_config("late", as_json=True)["config"]
        config.update(max_batch_size=2, version_policy={"specific": {"versions": ["1"]}})
        client.load_model("late", config=json.dumps(config))
        same(client.get_model_config("late").config.max_batch_size, 2)
        same([client.is_model_ready("late", version) for version in ("1", "3")], [True, False])
        rows = np.zeros((3, 16), np.int32)
        fails("INVALID_ARGUMENT", "2", lambda: client.infer("late", pair(triton, rows, rows)))
        client.load_model("late")
        same(client.get_model_config("late").config.max_batch_size, 8)
        same([client.is_model_ready("late", version) for version in ("1", "3")], [False, True])
        summed(client.infer("late", pair(triton, rows, rows)), rows, rows)
        fails("INTERNAL", "failed to load 'late'", lambda: client.load_model("late", config="no JSON"))
        summed(client.infer("late", pair(triton)))
        client.unload_model("late")


@checks
def load_with_other_files(server: Server) -> None:
    """A model whose files come with the request; without a configuration they are refused."""
    data = (server.repository / "simple" / "1" / "model.onnx").read_bytes()
    with grpc_client(server) as client:
        config = '{"backend": "onnxruntime", "max_batch_size": 8}'
        client.load_model("late", config=config, files={"file:7/model.onnx": data})
        same([client.is_model_ready("late", version) for version in ("3", "7")], [False, True])
        summed(client.infer("late", pair(triton), model_version="7"))
        fails("INTERNAL", "failed to load 'late'", lambda: client.load_model("late", files={"file:7/model.onnx": data}))
        client.load_model("late")
        same([client.is_model_ready("late", version) for version in ("3", "7")], [True, False])
        client.load_model("brought", config=config, files={"file:1/model.onnx": data})
        summed(client.infer("brought", pair(triton)))
        client.unload_model("brought")
        client.unload_model("late")


@checks
def unload_with_dependents(server: Server) -> None:
    """A model that an ensemble needs takes it along when asked to; loading the ensemble brings both back."""
    with grpc_client(server) as client:
        client.unload_model("simple_ensemble", unload_dependents=True)
        same([client.is_model_ready(name) for name in ("simple_ensemble", "simple")], [False, False])
        client.load_model("simple_ensemble")
        same([client.is_model_ready(name) for name in ("simple_ensemble", "simple")], [True, True])
        same(client.infer("simple_ensemble", pair(triton)).as_numpy("OUTPUT0")[0, 3], 6)
        client.load_model("simple")


@checks
def trace_settings(server: Server) -> None:
    with grpc_client(server) as client, grpc_client(server) as other:
        first = client.get_trace_settings(as_json=True)["settings"]
        same({"trace_level", "trace_rate", "trace_count", "log_frequency"} <= set(first), True)
        client.update_trace_settings("simple", {"trace_rate": "100", "trace_level": ["TIMESTAMPS"]})
        found = other.get_trace_settings("simple").settings
        same([list(found[key].value) for key in ("trace_rate", "trace_level")], [["100"], ["TIMESTAMPS"]])
        same(other.get_trace_settings(as_json=True)["settings"], first)
        summed(other.infer("simple", pair(triton)))
        client.update_trace_settings("simple", {"trace_rate": None, "trace_level": None})
        same(other.get_trace_settings("simple", as_json=True)["settings"], first)
        client.update_trace_settings(settings={"trace_rate": "50"})
        same(list(other.get_trace_settings("simple").settings["trace_rate"].value), ["50"])
        client.update_trace_settings(settings={"trace_rate": None})
        same(other.get_trace_settings(as_json=True)["settings"], first)


@checks
def log_settings(server: Server) -> None:
    with grpc_client(server) as client, grpc_client(server) as other:
        first = client.get_log_settings(as_json=True)["settings"]
        client.update_log_settings({"log_verbose_level": 1, "log_info": False, "log_format": "ISO8601"})
        found = other.get_log_settings().settings
        same([found["log_verbose_level"].uint32_param, found["log_info"].bool_param], [1, False])
        same(found["log_format"].string_param, "ISO8601")
        client.update_log_settings({"log_verbose_level": 0, "log_info": True, "log_format": "default"})
        same(other.get_log_settings(as_json=True)["settings"], first)
        fails(
            "UNIMPLEMENTED",
            "log file location can not be updated",
            lambda: client.update_log_settings({"log_file": "x"}),
        )
