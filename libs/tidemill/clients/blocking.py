"""A synchronous face over any asynchronous client, for scripts and notebooks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tidemill.rpc.loop import LoopThread


class Blocking:
    """The methods of `client`, each waiting for its result; asynchronous iterators become plain ones.

    Args:
        client: an asynchronous client, made inside the loop of `loop`.
        loop: the loop that it lives in.
    """

    def __init__(self, client: Any, loop: LoopThread) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        return self._wrapped(member) if callable(member) else member

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._client) if not name.startswith("_")]

    def _wrapped(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.iscoroutine(result):
                return self._loop.run(result)
            return self._loop.iterate(result) if hasattr(result, "__anext__") else result

        return call
