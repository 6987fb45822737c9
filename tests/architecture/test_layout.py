"""The shape of the code: what the import rules cannot say."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for root in ("libs", "services") for path in sorted((ROOT / root).rglob("*.py"))]
OURS = [path for path in SOURCES if "api" not in path.relative_to(ROOT).parts]


def test_the_namespace_has_no_init() -> None:
    assert not (ROOT / "libs/tidemill/__init__.py").exists()
    assert not (ROOT / "services/tidemill/__init__.py").exists()


def test_the_environment_is_read_in_one_place() -> None:
    readers = {p.name for p in OURS if re.search(r"\bos\.(environ|getenv)\b", p.read_text())}
    assert readers <= {"config.py"}
    assert [p for p in OURS if re.search(r"\bos\.(environ|getenv)\b", p.read_text())] == [
        ROOT / "libs/tidemill/config.py"
    ]


def test_nothing_loads_what_can_run_code() -> None:
    forbidden = re.compile(
        r"^\s*(import|from) (pickle|cPickle|cloudpickle|joblib|dill|shelve|marshal|tarfile|shutil\.unpack)\b"
        r"|torch\.load\(|allow_pickle\s*=\s*True|yaml\.load\(|(?<![.\w])eval\("
        r"|(?<![.\w])(?<!def )exec\(|os\.system\(|shell\s*=\s*True",
        re.MULTILINE,
    )
    found = {str(p.relative_to(ROOT)): m.group(0) for p in OURS if (m := forbidden.search(p.read_text()))}
    # The operator's own model file, in a process of its own.
    assert found == {"services/tidemill/inference/pythonbackend/program.py": "exec("}


def _entries() -> Iterator[Path]:
    for path in OURS:
        if path.name == "__main__.py" and path.parent.name != "cli":
            yield path


@pytest.mark.parametrize("path", list(_entries()), ids=lambda p: str(p.relative_to(ROOT)))
def test_entry_points_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 25


def test_every_module_says_what_it_is() -> None:
    assert [path for path in OURS if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_names_of_spans_and_metrics_stand_in_one_place() -> None:
    attributes = ROOT / "libs/tidemill/telemetry/attributes.py"
    literal = re.compile(r"""["'](tidemill\.[a-z_.]+|tidemill_[a-z_]+)["']""")
    modules = re.compile(r"tidemill\.(api|cli|clients|config|errors|rpc|telemetry|[a-z]+)(\.|$)")
    for path in OURS:
        if path == attributes:
            continue
        found = [m for m in literal.findall(path.read_text()) if m.startswith("tidemill_") or not modules.match(m)]
        assert not found, path


def _imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted(m for m in sys.modules if '.' not in m)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("service", ["registry", "artifacts", "gateway", "inference", "training", "parameters"])
def test_services_import_only_what_they_use(service: str) -> None:
    imported = _imported_by(f"import tidemill.{service}.app")
    heavy = {"torch", "sklearn", "scipy", "matplotlib", "onnx", "onnxscript"}
    allowed = {"artifacts": {"minio"}, "inference": {"onnxruntime"}, "gateway": {"starlette", "uvicorn"}}
    others = {"minio", "onnxruntime", "starlette", "uvicorn"} - allowed.get(service, set())
    assert not imported & (heavy | others)


def test_clients_are_light() -> None:
    statement = "import tidemill.clients.platform, tidemill.clients.workers, tidemill.clients.parameters"
    assert not _imported_by(statement) & {"torch", "onnxruntime", "onnx", "minio", "sklearn", "starlette", "matplotlib"}


def test_the_supervisor_never_imports_grpc() -> None:
    statement = "import tidemill.cli.commands.up, tidemill.cli.commands.serve, tidemill.cli.__main__"
    assert not _imported_by(statement) & {"grpc", "google", "numpy", "rich"}


def test_stub_floors_match_the_generator() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    stub = (ROOT / "libs/tidemill/api/registry/v1/registry_pb2_grpc.py").read_text()
    made_for = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stub)
    assert made_for is not None
    assert f'"grpcio>={made_for.group(1)}"' in project
    header = (ROOT / "libs/tidemill/api/registry/v1/registry_pb2.py").read_text()
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", header)
    assert protobuf is not None
    assert f'"protobuf>={protobuf.group(1)}"' in project


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_what_is_installed_is_pinned() -> None:
    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^ ;]+", line) for line in lines)
    assert any(line.startswith("torch==") for line in lines)


def test_the_project_names_no_package_registry_and_no_path_of_one_machine() -> None:
    hosts = re.compile(r"pypi\.o[r]g|pythonhoste[d]|registry\.npm[j]s|deb\.debia[n]|(?<![\w.])/(?:work|farm|root)/")
    for path in _files_of_the_project():
        if path.is_file() and path.suffix not in (".png",):
            assert not hosts.search(path.read_text(errors="ignore")), path


def _files_of_the_project() -> list[Path]:
    """What git keeps; where there is no git, or no clone, everything in the folders that it keeps."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [ROOT / name for name in listed]
    folders = [ROOT / name for name in (".ci", "libs", "protos", "scripts", "services", "tests")]
    found = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return found + [path for path in ROOT.iterdir() if path.is_file() and path.name not in (".git", ".env")]
