"""What every text in a request to a server is, by the field's full name, or `Method field` where methods differ."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode as Code

from tests.support.hostilenames import Name, Text

_R, _A, _T, _P = (f"tidemill.api.{name}.v1." for name in ("registry", "artifacts", "training", "parameters"))
DIGEST = "0123456789abcdef" * 4
_MODEL, _JOB, _UPLOAD, _BLOB, _ARTIFACT, _GROUP, _INSTANCE = (
    Name((f"{collection}/{{}}",))
    for collection in ("models", "jobs", "uploads", "blobs", "artifacts", "groups", "instances")
)
_VERSION = Name(("models/{}/versions/1", "models/m/versions/{}"))
_ALIAS = Name(("models/{}/aliases/a", "models/m/aliases/{}"))
_PLAIN, _OPTIONAL = Name(), Name(optional=True)
_FORGOTTEN = Name(optional=True, also=frozenset({Code.OK}), why="what is not there need not be forgotten")
_NONE = Name(optional=True, also=frozenset({Code.UNIMPLEMENTED}), why="there is one repository, and it has no name")
_REFERENCE = Name(("models/{}/versions/1", "models/m/versions/{}", "{}/x"))

_IGNORED = Text("said by the server; ignored in a request")
_WORDS = Text("words for people, kept and shown as they are")
_LABELS = Text("the caller's own labels, kept and shown as they are")
_ETAG = Text("compared with the stored one")
_TOKEN = Text("compared with the stored one; a secret")
_PAGE = Text("made by the server, checked when it comes back")
_FILTER = Text("parsed by a grammar of its own")
_VALUE = Text("a value of a parameter that the component declares, which checks it")
_REPORTED = Text("from a worker whose token was checked first")
_OPTION = Text("an option of the model that is asked; what it does not know it leaves alone")
_ID = Text("given back in the answer")
_REQUEST = Text("compared with the one of an earlier call")
_COLUMN = Text("compared with the columns of the data set")
_TENSOR = Text("a name that the model's author gave a tensor, kept and shown as it is")

FIELDS: Mapping[str, Name | Text] = {
    "google.protobuf.FieldMask.paths": _PLAIN,
    "google.protobuf.Struct.FieldsEntry.key": _PLAIN,
    "google.protobuf.Value.string_value": _VALUE,
    **dict.fromkeys(
        [
            *(f"inference.{kind}Request.name" for kind in ("ModelConfig", "ModelMetadata")),
            *("inference.ModelInferRequest.model_name", "inference.RepositoryModelLoadRequest.model_name"),
            *("inference.RepositoryModelUnloadRequest.model_name", "inference.SystemSharedMemoryRegisterRequest.name"),
            *("inference.SystemSharedMemoryRegisterRequest.key", "inference.CudaSharedMemoryRegisterRequest.name"),
            *(
                "inference.ModelInferRequest.InferInputTensor.name",
                "inference.ModelInferRequest.InferInputTensor.datatype",
            ),
            "inference.ModelInferRequest.InferRequestedOutputTensor.name",
        ],
        _PLAIN,
    ),
    **dict.fromkeys(
        [
            *(f"inference.{kind}Request.version" for kind in ("ModelConfig", "ModelMetadata")),
            *("inference.ModelStatisticsRequest.name", "inference.ModelStatisticsRequest.version"),
            *("inference.ModelInferRequest.model_version", "inference.TraceSettingRequest.model_name"),
            *(f"inference.{kind}SharedMemoryStatusRequest.name" for kind in ("System", "Cuda")),
        ],
        _OPTIONAL,
    ),
    **dict.fromkeys([f"inference.{kind}SharedMemoryUnregisterRequest.name" for kind in ("System", "Cuda")], _FORGOTTEN),
    **dict.fromkeys(
        [f"inference.Repository{k}Request.repository_name" for k in ("Index", "ModelLoad", "ModelUnload")], _NONE
    ),
    "inference.ModelReadyRequest.name": Name(also=frozenset({Code.OK}), why="no such model is not ready"),
    "inference.ModelReadyRequest.version": Name(optional=True, also=frozenset({Code.OK}), why="nor is no such version"),
    "inference.RepositoryModelLoadRequest.ParametersEntry.key": Name(("file:{}", "file:1/{}", "file:{}/model.onnx")),
    "inference.RepositoryModelUnloadRequest.ParametersEntry.key": _PLAIN,
    "inference.ModelRepositoryParameter.string_param": Text("a configuration, or a number: parsed"),
    "inference.LogSettingsRequest.SettingsEntry.key": _PLAIN,
    "inference.LogSettingsRequest.SettingValue.string_param": _PLAIN,
    "inference.TraceSettingRequest.SettingsEntry.key": _PLAIN,
    "inference.TraceSettingRequest.SettingValue.value": _PLAIN,
    "inference.ModelInferRequest.id": _ID,
    "inference.InferParameter.string_param": _OPTION,
    "inference.ModelInferRequest.ParametersEntry.key": _OPTION,
    "inference.ModelInferRequest.InferInputTensor.ParametersEntry.key": _OPTION,
    "inference.ModelInferRequest.InferRequestedOutputTensor.ParametersEntry.key": _OPTION,
    **dict.fromkeys([f"{_A}{kind}UploadRequest.name" for kind in ("Abort", "Finish", "Get", "Write")], _UPLOAD),
    **dict.fromkeys([f"{_A}{kind}BlobRequest.name" for kind in ("Get", "Read", "Delete")], _BLOB),
    **dict.fromkeys([f"{_A}{kind}ArtifactRequest.name" for kind in ("Get", "Delete")], _ARTIFACT),
    **dict.fromkeys([f"{_A}{kind}ReferenceRequest.name" for kind in ("Add", "Remove")], _ARTIFACT),
    **dict.fromkeys([f"{_A}{kind}ReferenceRequest.reference" for kind in ("Add", "Remove")], _REFERENCE),
    f"{_A}CreateArtifactRequest.reference": Name(_REFERENCE.patterns, optional=True),
    f"{_A}CreateUploadRequest.sha256": _PLAIN,
    f"{_A}Artifact.name": _IGNORED,
    f"{_A}Artifact.digest": _IGNORED,
    f"{_A}Artifact.references": _IGNORED,
    f"{_A}Artifact.kind": _PLAIN,
    f"{_A}Artifact.LabelsEntry.key": _PLAIN,
    f"{_A}Artifact.LabelsEntry.value": _LABELS,
    f"{_A}File.path": Name(("{}", "{}/x", "x/{}")),
    f"{_A}File.sha256": _PLAIN,
    f"{_A}File.media_type": Text("of the form type/subtype, which is checked; kept and shown"),
    f"{_A}ListArtifactsRequest.kind": _OPTIONAL,
    **dict.fromkeys([f"{_A}List{kind}Request.page_token" for kind in ("Artifacts", "Blobs")], _PAGE),
    **dict.fromkeys(
        [f"{_P}{kind}Request.name" for kind in ("Attach", "DeleteGroup", "GetGroup", "Load", "Pull", "PullState")],
        _GROUP,
    ),
    **dict.fromkeys(
        [f"{_P}{kind}Request.name" for kind in ("CloseRound", "HoldGroup", "ReadSums", "WriteSums")], _GROUP
    ),
    f"{_P}Group.name": _GROUP,
    f"{_P}PushHeader.name": _GROUP,
    f"{_P}Optimizer.name": _OPTIONAL,
    f"{_P}Schedule.name": _OPTIONAL,
    f"{_P}PushHeader.codec": _OPTIONAL,
    f"{_P}LoadRequest.state": _OPTIONAL,
    f"{_P}Member.waits_for": _IGNORED,
    f"{_P}ListGroupsRequest.page_token": _PAGE,
    f"{_R}Model.name": _MODEL,
    f"{_R}Model.description": _WORDS,
    f"{_R}Model.etag": _ETAG,
    f"{_R}Model.TagsEntry.key": _PLAIN,
    f"{_R}Model.TagsEntry.value": _LABELS,
    **dict.fromkeys([f"{_R}{kind}ModelRequest.name" for kind in ("Get", "Delete")], _MODEL),
    **dict.fromkeys([f"{_R}{kind}ModelVersionRequest.name" for kind in ("Get", "Delete")], _VERSION),
    **dict.fromkeys([f"{_R}{kind}AliasRequest.name" for kind in ("Get", "Set", "Delete")], _ALIAS),
    **dict.fromkeys([f"{_R}{kind}Request.parent" for kind in ("CreateModelVersion", "ListModelVersions")], _MODEL),
    f"{_R}ListAliasesRequest.parent": Name(_MODEL.patterns, optional=True),
    f"{_R}WatchRequest.model": Name(_MODEL.patterns, optional=True),
    **dict.fromkeys(
        [f"{_R}{kind}Request.etag" for kind in ("DeleteAlias", "DeleteModel", "DeleteModelVersion")], _ETAG
    ),
    **dict.fromkeys([f"{_R}{kind}Request.etag" for kind in ("SetAlias", "RenewInstance", "DeregisterInstance")], _ETAG),
    **dict.fromkeys([f"{_R}Create{kind}Request.request_id" for kind in ("Model", "ModelVersion")], _REQUEST),
    **dict.fromkeys([f"{_R}List{kind}Request.page_token" for kind in ("Models", "ModelVersions", "Aliases")], _PAGE),
    **dict.fromkeys([f"{_R}List{kind}Request.filter" for kind in ("Models", "ModelVersions")], _FILTER),
    f"{_R}ModelVersion.name": _VERSION,
    f"CreateModelVersion {_R}ModelVersion.name": _IGNORED,
    f"{_R}ModelVersion.format": _PLAIN,
    f"{_R}ModelVersion.artifact": _PLAIN,
    f"{_R}ModelVersion.description": _WORDS,
    f"{_R}ModelVersion.aliases": _IGNORED,
    f"{_R}ModelVersion.etag": _ETAG,
    f"{_R}ModelVersion.MetricsEntry.key": _PLAIN,
    f"{_R}ModelVersion.TagsEntry.key": _PLAIN,
    f"{_R}ModelVersion.TagsEntry.value": _LABELS,
    f"{_R}Signature.labels": _WORDS,
    f"{_R}Lineage.job": Name(_JOB.patterns, optional=True),
    f"{_R}Lineage.dataset_digests": _PLAIN,
    f"{_R}Lineage.code_revision": _WORDS,
    f"{_R}Lineage.traceparent": _OPTIONAL,
    **{f"UpdateModelVersion {_R}{field}": _IGNORED for field in ("ModelVersion.format", "ModelVersion.artifact")},
    **{f"UpdateModelVersion {_R}Lineage.{field}": _IGNORED for field in ("job", "dataset_digests", "traceparent")},
    f"UpdateModelVersion {_R}ModelVersion.MetricsEntry.key": _IGNORED,
    f"{_R}Instance.name": _IGNORED,
    f"{_R}Instance.etag": _IGNORED,
    f"{_R}Instance.service": _PLAIN,
    f"{_R}Instance.address": _PLAIN,
    f"{_R}Instance.LabelsEntry.key": _PLAIN,
    f"{_R}Instance.LabelsEntry.value": _LABELS,
    f"{_R}RegisterInstanceRequest.instance_id": _PLAIN,
    **dict.fromkeys([f"{_R}{kind}InstanceRequest.name" for kind in ("Renew", "Deregister")], _INSTANCE),
    f"{_R}ListInstancesRequest.service": _OPTIONAL,
    "tidemill.api.tensors.v1.TensorSpec.name": _TENSOR,
    **dict.fromkeys(
        [f"{_T}{kind}JobRequest.name" for kind in ("Cancel", "Delete", "Get", "Pause", "Resize", "Resume", "Watch")],
        _JOB,
    ),
    **dict.fromkeys([f"{_T}{kind}Request.name" for kind in ("ExplainJob", "StreamEvents", "StreamLogs")], _JOB),
    f"{_T}CreateJobRequest.job_id": _OPTIONAL,
    f"{_T}CreateJobRequest.request_id": _REQUEST,
    f"{_T}ListJobsRequest.page_token": _PAGE,
    f"{_T}Component.name": _OPTIONAL,
    f"{_T}Dataset.builtin": _PLAIN,
    f"{_T}Dataset.artifact": _PLAIN,
    f"{_T}Dataset.format": _OPTIONAL,
    f"{_T}Dataset.label_column": _COLUMN,
    f"{_T}Dataset.text_column": _COLUMN,
    f"{_T}JobSpec.strategy": _OPTIONAL,
    f"{_T}Consistency.mode": _OPTIONAL,
    f"{_T}Durability.mode": _OPTIONAL,
    f"{_T}Stragglers.policy": _OPTIONAL,
    f"{_T}JobSpec.register_as": Name(_MODEL.patterns, optional=True),
    f"{_T}JobSpec.alias": _OPTIONAL,
    f"{_T}JobSpec.code_revision": _WORDS,
    **dict.fromkeys([f"{_T}{kind}Request.token" for kind in ("GetTask", "Heartbeat", "ReportEpoch")], _TOKEN),
    **dict.fromkeys([f"{_T}{kind}Request.token" for kind in ("ReportResult", "ReportFailure")], _TOKEN),
    **dict.fromkeys([f"{_T}{kind}Request.token" for kind in ("Meet", "ReportCheckpoint", "ChooseCopy")], _TOKEN),
    f"{_T}MeetRequest.address": _REPORTED,
    f"{_T}ReportCheckpointRequest.checkpoint": _REPORTED,
    f"{_T}ReportFailureRequest.traceback": _REPORTED,
    f"{_T}HeartbeatRequest.phase": _REPORTED,
    f"{_T}Epoch.checkpoint": _REPORTED,
    f"{_T}ReportFailureRequest.error": _REPORTED,
    **{
        f"{_T}Result.{field}": _REPORTED
        for field in ("artifact", "model_version", "dataset_digest", "logs", "signature", "test_samples")
    },
}
"""Everything there is; a field that is not here has nobody's promise that it is harmless."""

_VERSION_FIELDS = {"format": "onnx", "artifact": DIGEST}
_GROUP_FIELDS = {
    "name": "groups/good",
    "workers": 1,
    "shards": 1,
    "tensors": [{"name": "w", "dtype": "DATA_TYPE_FP32", "shape": ["1"]}],
    "blocks": [{"elements": "1"}],
    "optimizer": {"name": "sgd"},
}
_INFER = {
    "modelName": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": ["1", "2"]}],
    "outputs": [{"name": "y"}],
    "rawInputContents": ["AAAAAAAAAAA="],
}
_SPEC = {"model": {"name": "mlp"}, "dataset": {"builtin": "iris"}, "epochs": 1, "registerAs": "models/m", "alias": "a"}

REQUESTS: Mapping[str, Any] = {
    "CreateModel": {"model": {"name": "models/good"}},
    "GetModel": {"name": "models/m"},
    "UpdateModel": {"model": {"name": "models/m", "description": "x"}, "updateMask": "description,tags"},
    "DeleteModel": {"name": "models/none"},
    "CreateModelVersion": {"parent": "models/m", "modelVersion": _VERSION_FIELDS},
    "GetModelVersion": {"name": "models/m/versions/1"},
    **{f"List{kind}": {"parent": "models/m"} for kind in ("ModelVersions", "Aliases")},
    "UpdateModelVersion": {
        "modelVersion": {"name": "models/m/versions/1", "description": "x"},
        "updateMask": "description,tags",
    },
    "DeleteModelVersion": {"name": "models/m/versions/9"},
    "SetAlias": {"name": "models/m/aliases/a", "version": "1"},
    "GetAlias": {"name": "models/m/aliases/a"},
    "DeleteAlias": {"name": "models/m/aliases/none"},
    "Watch": {"model": "models/m", "fromRevision": "1"},
    "RegisterInstance": {
        "instance": {"service": "good", "address": "127.0.0.1:1", "ttl": "10s"},
        "instanceId": "i",
    },
    "RenewInstance": {"name": "instances/good.none"},
    "DeregisterInstance": {"name": "instances/good.none"},
    "CreateUpload": {"sha256": DIGEST, "size": "1"},
    **{f"{kind}Upload": {"name": "uploads/none"} for kind in ("Get", "Finish", "Abort", "Write")},
    **{f"{kind}Blob": {"name": f"blobs/{DIGEST}"} for kind in ("Get", "Read", "Delete")},
    "CreateArtifact": {
        "artifact": {"kind": "model", "files": [{"path": "a", "sha256": DIGEST, "size": "1"}]},
        "reference": "models/m/versions/1",
    },
    **{f"{kind}Artifact": {"name": f"artifacts/{DIGEST}"} for kind in ("Get", "Delete")},
    **{
        f"{kind}Reference": {"name": f"artifacts/{DIGEST}", "reference": "models/m/versions/1"}
        for kind in ("Add", "Remove")
    },
    "CreateJob": {"spec": _SPEC},
    **{
        f"{kind}Job": {"name": "jobs/none"}
        for kind in ("Get", "Cancel", "Pause", "Resize", "Resume", "Delete", "Watch")
    },
    **{kind: {"name": "jobs/none"} for kind in ("ExplainJob", "StreamEvents", "StreamLogs")},
    "CreateGroup": {"group": _GROUP_FIELDS},
    "Attach": {"name": "groups/none"},
    **{f"{kind}Group": {"name": "groups/none"} for kind in ("Get", "Delete")},
    "Load": {"name": "groups/none"},
    "Push": {"header": {"name": "groups/none"}},
    **{kind: {"name": "groups/none"} for kind in ("Pull", "PullState", "CloseRound", "HoldGroup")},
    **{kind: {"name": "groups/none"} for kind in ("ReadSums", "WriteSums")},
    "CheckOptimizer": {"optimizer": {"name": "sgd"}},
    **{f"Model{kind}": {"name": "m", "version": "1"} for kind in ("Ready", "Metadata", "Config", "Statistics")},
    **{f"Model{kind}Infer": _INFER for kind in ("", "Stream")},
    "RepositoryModelLoad": {"modelName": "m"},
    "RepositoryModelUnload": {"modelName": "m"},
    "SystemSharedMemoryRegister": {"name": "r", "key": "none", "byteSize": "1"},
    "CudaSharedMemoryRegister": {"name": "r", "rawHandle": "AAAA", "byteSize": "1"},
}
"""Requests without a fault in a name, to what there may be or not; of other methods it is the empty one."""


def request(method: Any) -> Message:
    """The request without a fault in a name."""
    made: Message = GetMessageClass(method.input_type)()
    json_format.ParseDict(REQUESTS.get(method.name, {}), made)
    return made
