"""The configuration of a model, as it reads and completes it."""

import json
from collections.abc import Mapping
from typing import Any

_TENSOR = ("name", "data_type", "dims")


class ModelConfig:
    """What `auto_complete_config` gets, completes and gives back.

    Args:
        config: the configuration as a JSON text.
    """

    def __init__(self, config: str) -> None:
        self._config: dict[str, Any] = json.loads(config)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as it is now."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch. Raises ValueError when the owner has asked for a larger one."""
        if self._config["max_batch_size"] > max_batch_size:
            raise self._problem(
                f"max_batch_size is {self._config['max_batch_size']} in the configuration, "
                f"but {max_batch_size} in auto_complete_config"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Put requests together. Raises ValueError when the owner has chosen another way."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise self._problem(f"auto_complete_config sets dynamic_batching, but there is {other} already")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy: Mapping[str, Any]) -> None:
        """Set whether a request may have any number of answers, as in `{"decoupled": True}`."""
        if unknown := [name for name in policy if name != "decoupled"]:
            raise self._problem(f"model_transaction_policy has no property '{unknown[0]}'")
        mine = self._config.setdefault("model_transaction_policy", {})
        if mine.get("decoupled") and not policy.get("decoupled", mine["decoupled"]):
            raise self._problem("the configuration says that it is decoupled, auto_complete_config that it is not")
        mine.update(policy)

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Declare an input: name, data_type, dims and, if it may be left out, optional. Raises ValueError."""
        self._add("input", input, (*_TENSOR, "optional"))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Declare an output: name, data_type and dims. Raises ValueError."""
        self._add("output", output, _TENSOR)

    def _add(self, side: str, tensor: Mapping[str, Any], known: tuple[str, ...]) -> None:
        if unknown := [name for name in tensor if name not in known]:
            raise self._problem(f"{side} '{tensor.get('name', '')}' has no property '{unknown[0]}'")
        if missing := [name for name in _TENSOR if name not in tensor]:
            raise self._problem(f"{side} '{tensor.get('name', '')}' of auto_complete_config has no {missing[0]}")
        mine: list[dict[str, Any]] = self._config.setdefault(side, [])
        for declared in mine:
            if declared["name"] == tensor["name"]:
                self._agree(side, declared, tensor)
                return
        mine.append({**tensor, "dims": list(tensor["dims"])})

    def _agree(self, side: str, declared: dict[str, Any], tensor: Mapping[str, Any]) -> None:
        for name in ("data_type", "dims"):
            owner, model = declared.get(name), tensor[name]
            if owner in (None, "TYPE_INVALID", []):
                declared[name] = model
            elif (list(owner) if name == "dims" else owner) != (list(model) if name == "dims" else model):
                raise self._problem(f"{side} '{tensor['name']}' has {name} {owner} in its configuration, not {model}")

    def _problem(self, text: str) -> ValueError:
        return ValueError(f"model '{self._config.get('name', '')}': {text}")


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The part of a configuration that declares this input; None when none does."""
    return _by_name(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The part of a configuration that declares this output; None when none does."""
    return _by_name(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that a request may have any number of answers."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def _by_name(tensors: Any, name: str) -> Any:
    return next((tensor for tensor in tensors if tensor["name"] == name), None)
