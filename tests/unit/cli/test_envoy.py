"""The configuration of Envoy: Envoy itself takes it, and it says what was asked for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tidemill.cli.__main__ import main
from tidemill.cli.envoy import INFER, Balancer
from tidemill.errors import Invalid

SERVERS = ("--upstream", "10.0.0.1:8001", "--upstream", "[fd00::2]:8001")


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    assert main(["envoy", *SERVERS, *flags]) == 0
    return json.loads(capsys.readouterr().out)


def routes(found: Any) -> dict[str, Any]:
    (listener,) = found["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    return {route["match"].get("path", route["match"].get("prefix")): route["route"] for route in host["routes"]}


@pytest.mark.parametrize("flags", [(), ("--retries", "0", "--admin", "127.0.0.1:9901", "--check-seconds", "5")])
def test_envoy_takes_it(flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(printed(capsys, *flags)))
    binary = Path(sys.executable).parent / "envoy"
    command = [str(binary), "--mode", "validate", "--log-level", "warn", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_only_calls_that_change_nothing_are_made_again_when_a_server_goes(capsys: pytest.CaptureFixture[str]) -> None:
    found = routes(printed(capsys))
    assert found[INFER]["retry_policy"]["retry_on"].split(",").count("reset") == 1
    assert "reset" not in found["/"]["retry_policy"]["retry_on"].split(",")
    assert found["/"]["timeout"] == "0s"
    assert not any("retry_policy" in route for route in routes(printed(capsys, "--retries", "0")).values())


def test_servers_that_fail_health_checks_get_no_calls_whatever_the_others_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (cluster,) = printed(capsys)["static_resources"]["clusters"]
    assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
    (check,) = cluster["health_checks"]
    assert check["interval"] == "1s"
    assert "grpc_health_check" in check
    (group,) = cluster["load_assignment"]["endpoints"]
    found = [server["endpoint"]["address"]["socket_address"] for server in group["lb_endpoints"]]
    assert [(one["address"], one["port_value"]) for one in found] == [("10.0.0.1", 8001), ("fd00::2", 8001)]


def test_says_how_long_servers_must_linger(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envoy", *SERVERS, "--check-seconds", "2"]) == 0
    assert "TIDEMILL_LINGER_SECONDS=6 " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "::1:80", "[host]:80"])
def test_refuses_addresses_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["envoy", "--upstream", text])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_needs_distinct_servers() -> None:
    for upstreams in ([], [("a", 1), ("a", 1)]):
        with pytest.raises(Invalid, match="upstream"):
            Balancer(upstreams=upstreams, listen=("127.0.0.1", 1))
