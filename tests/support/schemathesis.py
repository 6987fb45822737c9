"""schemathesis, in an environment of its own, against the OpenAPI document of a running gateway."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.venvs import venv

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What schemathesis found.

    Args:
        status: of the command: 0 = nothing wrong.
        text: all that it has printed.
        failures: titles of what was wrong, with the operation.
    """

    status: int
    text: str
    failures: Sequence[str]


def schemathesis(
    document: str | Path, url: str, work: Path, *, examples: int = 10, seed: int = 20_260_101, only: str = "."
) -> Outcome:
    """Run it: some requests for each operation, good and bad ones.

    Args:
        document: the OpenAPI document, or where it is.
        url: of the gateway.
        work: directory for its settings.
        examples: most requests of each operation that are made at random.
        only: pattern of paths.
    """
    settings = work / "schemathesis.toml"
    # 501 and 503: what is not offered, and what must wait or is not allowed; the texts are the protocol's.
    settings.write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501", "503"]\n')
    command = [str(venv("schemathesis").parent / "schemathesis"), "--config-file", str(settings), "--no-color", "run"]
    command += [
        str(document),
        "--url",
        url,
        "--checks",
        ",".join(CHECKS),
        "--mode",
        "all",
        "--phases",
        "coverage,fuzzing",
    ]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--generation-deterministic"]
    command += ["--suppress-health-check", "all", "--request-timeout", "10", "--continue-on-failure"]
    command += ["--include-path-regex", only]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=900, cwd=work
    )
    text = done.stdout + done.stderr
    return Outcome(done.returncode, text, re.findall(r"^_+ (.*?) _+$", text, re.MULTILINE))
