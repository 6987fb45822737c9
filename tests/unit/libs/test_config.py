"""Settings from flags and environment, and hyperparameters from JSON."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from tidemill import config
from tidemill.errors import Invalid
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServerConfig):
    size: int = config.setting("size in bytes", 10)
    names: tuple[str, ...] = config.setting("some names", ())
    ratio: float | None = config.setting("a ratio", None)
    password: str = config.setting("a password", "", secret=True)


def load(arguments: list[str], environment: dict[str, str]) -> Settings:
    return config.load(Settings, "TOY", arguments=arguments, environment=environment)


def test_flag_wins_over_variable_wins_over_default() -> None:
    assert load([], {}).size == 10
    assert load([], {"TIDEMILL_TOY_SIZE": "11"}).size == 11
    assert load(["--size", "12"], {"TIDEMILL_TOY_SIZE": "11"}).size == 12
    settings = load(["--names", "a, b", "--ratio", "0.5"], {"TIDEMILL_HOST": "127.0.0.2"})
    assert (settings.names, settings.ratio, settings.host) == (("a", "b"), 0.5, "127.0.0.2")


def test_secrets_come_from_the_environment_alone_and_are_not_shown() -> None:
    settings = load([], {"TIDEMILL_TOY_PASSWORD": "hush"})
    assert settings.password == "hush"
    assert "hush" not in repr(settings)
    with pytest.raises(SystemExit):
        load(["--password", "x"], {})


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(["--help"], {})
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for variable in ("TIDEMILL_TOY_SIZE", "TIDEMILL_TOY_PASSWORD", "TIDEMILL_TOY_PORT", "TIDEMILL_HOST"):
        assert variable in shown
    assert "(default empty; TIDEMILL_TOY_NAMES)" in shown
    assert "(default none; TIDEMILL_TRACES)" in shown, "which is a word that this setting knows"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "x"], "--size: 'x' is not of type int"),
        (["--port", "70000"], "port: must be in"),
        (["--host", "0.0.0.0"], "not loopback"),
        (["--log-style", "xml"], "json or text"),
        (["--nope", "1"], "--nope"),
    ],
)
def test_wrong_settings_end_with_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(arguments, {})
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_other_addresses_need_an_explicit_flag() -> None:
    assert load(["--host", "0.0.0.0", "--allow-insecure-bind", "true"], {}).host == "0.0.0.0"


@dataclass(frozen=True, kw_only=True)
class Hyper:
    units: int = config.parameter("units", 8, low=1, high=64)
    rate: float = config.parameter("rate", 0.1, low=0)
    flag: bool = config.parameter("flag", False)
    kind: str = config.parameter("kind", "relu")
    hidden: tuple[int, ...] = config.parameter("sizes", (4,), low=1, high=64)


def test_hyperparameters_from_json() -> None:
    made = config.from_mapping(Hyper, {"units": 4.0, "rate": 1, "hidden": [1.0, 2]})
    assert made == Hyper(units=4, rate=1.0, hidden=(1, 2))
    assert isinstance(made.units, int)
    assert [row[:2] for row in config.describe(Hyper)][-1] == ("hidden", "list[int]")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"unit": 1}, "parameters.unit"),
        ({"units": 1.5}, "parameters.units"),
        ({"units": 0}, "parameters.units"),
        ({"units": "3"}, "parameters.units"),
        ({"units": True}, "parameters.units"),
        ({"rate": math.nan}, "parameters.rate"),
        ({"rate": math.inf}, "parameters.rate"),
        ({"rate": -1}, "parameters.rate"),
        ({"flag": 1}, "parameters.flag"),
        ({"kind": 1}, "parameters.kind"),
        ({"hidden": 3}, "parameters.hidden"),
        ({"hidden": [0]}, "parameters.hidden[0]"),
        ({"hidden": [1] * 65}, "parameters.hidden"),
        ({"units": 1e300}, "parameters.units"),
    ],
)
def test_wrong_hyperparameters_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as error:
        config.from_mapping(Hyper, values)
    assert list(error.value.violations) == [field]
