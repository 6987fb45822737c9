"""The interface by which protocols load and unload the models of an operator's repository."""

from collections.abc import Mapping
from typing import Protocol

POLLED = "explicit model load / unload is not allowed if polling is enabled"
"""What clients are told when models come and go by themselves."""


class ModelControl(Protocol):
    """Loads and unloads models. Called from any thread; blocks until it is done."""

    def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        """Load a model as its folder is now; what of it is loaded already, and has not changed, stays.

        Args:
            model: name of its folder.
            config: its whole configuration as JSON, in place of the file in its folder; "" = none.
            files: its files by path, such as `1/model.onnx`, in place of its folder; empty = the folder. They need
                `config`.
            version: the one number to load, beside those that are loaded; "" = those that the version policy says.

        Raises:
            Unavailable: models are not loaded by request here.
            Internal: it cannot be loaded; what was loaded of it before serves on.
            Invalid: name, number, configuration or paths are wrong.
            Exhausted: the files are too large.
        """

    def unload(self, model: str, dependents: bool, version: str = "") -> None:
        """Unload a model; returns when no new request reaches it.

        Args:
            model: its name.
            dependents: unload also the models that it is made of, if it is an ensemble, that no other one uses.
            version: the one number to unload; "" = all.

        Raises:
            Unavailable: models are not unloaded by request here.
            NotFound: there is no such model.
            Invalid: name or number is wrong.
        """
