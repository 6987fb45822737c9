"""Lets work say that it will wait, to whoever counts how much is at work."""

import threading
from collections.abc import Callable


class _OfThread(threading.local):
    hook: Callable[[], None] | None = None


_OF_THREAD = _OfThread()


def about_to_wait() -> None:
    """To be called before this thread waits for others: somebody else may then work in its place."""
    hook = _OF_THREAD.hook
    if hook is not None:
        hook()


def on_wait(hook: Callable[[], None] | None) -> None:
    """Have `about_to_wait` call `hook` on this thread; None = nothing."""
    _OF_THREAD.hook = hook
