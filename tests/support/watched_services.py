"""Services in one process that writes down every file it opens or makes and every program it starts: run as a process.

`python -m tests.support.watched_services FOLDER NAME...` serves the services NAME over `FOLDER/data` and the model
repository `FOLDER/models`, prints their ports as a line of JSON, and ends when its standard input does. The events go
to `FOLDER/events`, a line of JSON each: the event's name and what it is about.
"""

import os
import sys

_EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "os.chmod"),
    *("os.listdir", "os.scandir", "sqlite3.connect", "ctypes.dlopen", "glob.glob"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.getaddrinfo", "os.fork"),
    *("shutil.rmtree", "shutil.copyfile", "shutil.move", "shutil.unpack_archive", "urllib.Request"),
}


def _watch(path: str) -> None:
    """Write to `path` from now on; hooks cannot be taken away again."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS:
            about = [os.fsdecode(a) if isinstance(a, (str, bytes)) else "" for a in arguments[:2]]
            caller = sys._getframe(1)
            if caller.f_code.co_name == "_rmtree_safe_fd" and "fullname" in caller.f_locals:
                about[0] = caller.f_locals["fullname"]  # it names what it deletes by the folder that it has open
            os.write(target, (json.dumps([event, *about]) + "\n").encode())

    sys.addaudithook(hook)


async def _serve(folder: str, names: list[str]) -> None:
    made = Apps(Path(folder))
    apps = []
    try:
        for name in names:
            app = made.build(name)
            await app.start()
            apps.append(app)
            made.started[name] = app
        print(json.dumps(made.ports()), flush=True)  # noqa: T201 the answer
        await asyncio.to_thread(sys.stdin.read)
    finally:
        for app in reversed(apps):
            await app.stop(grace=1)


if __name__ == "__main__":
    import asyncio
    import json
    from pathlib import Path

    _watch(os.path.join(sys.argv[1], "events"))
    from tests.support.watched_apps import Apps

    asyncio.run(_serve(sys.argv[1], sys.argv[2:]))
