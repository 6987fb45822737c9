"""The one process of a training service that talks to Ray: requests come in as lines of JSON, answers go out likewise.

Ray runs threads of its own in whatever process joins a cluster, and ends that process when the cluster is lost. It also
wants the Python and the Ray version of the cluster. So it gets a process of its own, which lives as long as its input.
"""

import asyncio
import base64
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from tidemill.training.launchers._ray.agent import Agent, groups_of
from tidemill.training.launchers._ray.gangs import Gangs

Tell = Callable[[dict[str, Any]], None]
_POLL = 1.0
"""Longest time of one call that waits for output, in seconds."""
_NOTICE = 2.0
"""Seconds between two looks at what a launch waits for."""
_AGAIN = 0.1
"""Seconds between two looks for an agent."""
_ANSWER = 20.0
"""Longest time in which an agent answers, in seconds."""
_EXPECTED = (RayError, OSError, RuntimeError, ValueError)
"""Ray raises all of these when it is cut off."""


class Refused(Exception):
    """What was asked for cannot be done; the text says why, `kind` is LATER when it may be done later."""

    def __init__(self, text: str, kind: str = "LATER") -> None:
        super().__init__(text)
        self.kind = kind


class Bridge:
    """Carries out requests; every method whose name has no underscore is one.

    Args:
        settings: what the launcher was told.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        bundle = {kind: settings[key] for kind, key in (("CPU", "cpus"), ("GPU", "gpus")) if settings[key]}
        self._gangs = Gangs(settings["namespace"], bundle or {"CPU": 0.001}, settings["strategy"], self._end)
        self._agents: dict[str, Any] = {}
        self._launches: dict[str, asyncio.Task[Any]] = {}

    async def launch(
        self, tell: Tell, *, name: str, job: str, command: list[str], environment: dict[str, str]
    ) -> dict[str, Any]:
        """Start a worker; the pid."""
        notice = asyncio.ensure_future(self._notice(tell))
        work = self._launches[name] = asyncio.ensure_future(
            self._launch(name, job, command, environment, notice.cancel)
        )
        try:
            async with asyncio.timeout(self._settings["wait_seconds"]):
                return dict(await work)
        except TimeoutError as error:
            raise Refused(
                f"no place in the Ray cluster was found in time: it {await asyncio.to_thread(self._gangs.wish)}"
            ) from error
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            raise Refused("its launch was broken off") from error
        except (RayError, LookupError) as error:
            raise Refused(f"Ray could not start it: {_first_line(error)}") from error
        finally:
            for task in (work, notice):
                task.cancel()
            await asyncio.wait({work, notice})
            self._launches.pop(name)

    async def _launch(
        self, name: str, job: str, command: list[str], environment: dict[str, str], placed: Callable[[], Any]
    ) -> dict[str, Any]:
        try:
            if name in await asyncio.to_thread(self._names):
                raise Refused("its handle was used before", "USED")
            place = await self._gangs.place(name, job)
            placed()
            agent = self._agents[name] = self._actor(name, job, place)
            python = self._settings["worker_python"] if command[0] == self._settings["own_python"] else None
            started = await agent.start.remote(command, python, environment, self._settings["scratch"])
            if "refused" in started:
                raise Refused(started["refused"], "NEVER" if started["final"] else "LATER")
            return dict(started)
        except BaseException:
            self._forget(name)
            raise

    def _actor(self, name: str, job: str, place: Any) -> Any:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            placement_group=place.gang.group, placement_group_bundle_index=place.bundle
        )
        options = {
            "name": name, "lifetime": "detached", "max_restarts": 0, "max_concurrency": 16,
            "num_cpus": self._settings["cpus"], "num_gpus": self._settings["gpus"], "scheduling_strategy": strategy,
        }  # fmt: skip
        return (
            ray.remote(Agent)
            .options(**options)
            .remote(
                job=job,
                name=name,
                gang=place.gang.name,
                bundle=place.bundle,
                abandoned=self._settings["abandoned"],
                limit=self._settings["output_bytes"],
            )
        )

    async def _notice(self, tell: Tell) -> None:
        """Say what a launch waits for, when it does, and again when that changes."""
        said = ""
        while True:
            await asyncio.sleep(_NOTICE)
            wish = await asyncio.to_thread(self._gangs.wish)
            if wish != said:
                tell({"text": f"the Ray cluster has no place yet: it {wish}"})
            said = wish

    async def adopt(self, tell: Tell, *, name: str, position: int) -> dict[str, Any] | None:
        """The pid of a worker that was launched before; None if there is none, and then there never will be.

        The rest of the output of one that was told to end is told.
        """
        if name in self._launches:
            self._launches[name].cancel()
            await asyncio.wait({self._launches[name]})
        try:
            agent = await self._found(name)
        except ValueError:
            return None
        try:
            async with asyncio.timeout(_ANSWER):
                found = dict(await agent.describe.remote())
        except (ActorUnavailableError, TimeoutError) as error:
            raise Refused(f"the node of the worker is out of reach: {_first_line(error)}") from error
        except RayActorError:
            self._forget(name)
            return None
        self._agents[name] = agent
        self._gangs.known(name, found["gang"], found["bundle"])
        if found["pid"] and not found["stopping"]:
            return found
        if found["pid"]:
            await self.stop(tell, name=name, grace=0)
            await self.follow(tell, name=name, position=position)
        self._forget(name)
        return None

    async def _found(self, name: str) -> Any:
        """The agent of this name, not one that is about to end. Raises as `_find`."""
        deadline = asyncio.get_running_loop().time() + _ANSWER
        while True:
            try:
                return await asyncio.to_thread(_find, name)
            except Refused:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_AGAIN)

    async def follow(self, tell: Tell, *, name: str, position: int) -> dict[str, Any]:
        """Tell what a worker prints, until it has ended: its exit status, and the reason if it was not its own end."""
        lost = 0.0
        while True:
            if name not in self._agents:
                raise Refused("nothing is known of it")
            try:
                begin, data, status = await self._agents[name].read.remote(position, _POLL)
            except ActorUnavailableError as error:
                lost += _POLL
                if lost > self._settings["abandoned"]:
                    return self._lost(name, f"its node is out of reach: {_first_line(error)}")
                await asyncio.sleep(_POLL)
                continue
            except RayActorError as error:
                return self._lost(name, await asyncio.to_thread(_cause, error))
            lost = 0.0
            if data or begin > position:
                tell({"begin": begin, "data": base64.b64encode(data).decode()})
                position = begin + len(data)
            if status is not None:
                self._gangs.over(name)
                return {"status": status, "reason": ""}

    def _lost(self, name: str, reason: str) -> dict[str, Any]:
        self._forget(name)
        return {"status": -9, "reason": reason}

    async def stop(self, tell: Tell, *, name: str, grace: float) -> None:
        """Ask a worker to end, and kill it after `grace` seconds; `follow` tells when it has ended."""
        if name in self._agents:
            with suppress(RayActorError):
                await self._agents[name].stop.remote(grace)

    async def forget(self, tell: Tell, *, name: str) -> None:
        """End an agent, and with it its worker if it still runs."""
        self._forget(name)

    async def clean(self, tell: Tell, *, job: str) -> None:
        """End all agents of a job."""
        await self._remove(await asyncio.to_thread(self._names), lambda owner: owner == job)

    async def sweep(self, tell: Tell, *, jobs: list[str]) -> None:
        """End all agents but those of these jobs, and give back what is reserved for nobody."""
        names = await asyncio.to_thread(self._names)
        await self._remove(names, lambda owner: owner not in jobs)
        owners = {name.split("/")[0] for name in names} | {name.split("/")[0] for name in self._launches}
        for gang in await asyncio.to_thread(groups_of, ""):
            if gang.split("/")[1] not in owners:
                self._gangs.remove(gang)

    async def _remove(self, names: list[str], chosen: Callable[[str], bool]) -> None:
        for name in names:
            if chosen(name.split("/")[0]):
                with suppress(ValueError, RayError, Refused):
                    self._agents.setdefault(name, await asyncio.to_thread(_find, name))
                self._forget(name)
        for gang in await asyncio.to_thread(groups_of, ""):
            if chosen(gang.split("/")[1]):
                self._gangs.remove(gang)

    def _names(self) -> list[str]:
        return [str(name) for name in ray.util.list_named_actors() if "/" in name]

    def _forget(self, name: str) -> None:
        self._end(name)
        self._gangs.release(name)

    def _end(self, name: str) -> None:
        agent = self._agents.pop(name, None)
        if agent is not None:
            with suppress(RayError, ValueError):
                ray.kill(agent)


def _find(name: str) -> Any:
    """The agent of this name.

    Raises:
        ValueError: there is none.
        Refused: it is about to end.
    """
    try:
        return ray.get_actor(name)
    except AssertionError as error:  # Ray keeps the name for a moment longer than the class
        raise Refused("its agent is about to end") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:400]


def _cause(error: RayActorError) -> str:
    """Why an agent has ended without its worker having done so."""
    text = " ".join(str(error).split())
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    named = [node for node in ray.nodes() if node["NodeID"] in text or f"ip: {node['NodeManagerAddress']}" in text]
    dead = [node for node in named if node["NodeID"] not in alive]
    if "node died" in text.lower() or "node is dead" in text.lower() or dead:
        where = dead[0]["NodeManagerAddress"] if dead else "it ran on"
        return f"its node ({where}) has died"
    return f"Ray has ended it: {text[:600]}"


class Desk:
    """Takes requests off the input and puts answers on the output, many at a time."""

    def __init__(self, bridge: Bridge, out: Any) -> None:
        self._bridge = bridge
        self._out = out
        self._work: dict[int, asyncio.Task[None]] = {}

    def take(self, line: str) -> None:
        """Begin with a request; a number alone breaks that one off."""
        request = json.loads(line)
        if isinstance(request, int):
            if request in self._work:
                self._work[request].cancel()
            return
        number = request.pop("id")
        task = self._work[number] = asyncio.ensure_future(self._answer(number, request))
        task.add_done_callback(lambda _: self._work.pop(number))

    def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    async def _answer(self, number: int, request: dict[str, Any]) -> None:
        method = getattr(self._bridge, request.pop("op"))
        try:
            result = await method(lambda part: self.say({"id": number, "part": part}), **request)
        except Refused as refused:
            self.say({"id": number, "error": str(refused), "kind": refused.kind})
        except asyncio.CancelledError:
            self.say({"id": number, "error": "broken off", "kind": "LATER"})
        except Exception as error:  # noqa: BLE001 - whoever asked must have an answer, whatever Ray comes up with
            if not isinstance(error, _EXPECTED):
                traceback.print_exc()
            self.say({"id": number, "error": f"{type(error).__name__}: {_first_line(error)}", "kind": "LATER"})
        else:
            self.say({"id": number, "result": result})


async def _serve(desk: Desk) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(desk.take, line)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


def main() -> None:
    """Join the cluster that the first line of input names, and serve until the end of input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not disturb
    settings = json.loads(sys.stdin.readline())
    try:
        ray.init(
            address=settings["address"],
            namespace=settings["namespace"],
            runtime_env={"py_modules": settings["package"], "excludes": ["__pycache__", "*.pyc"]},
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {_first_line(error)}"}), file=out, flush=True)
        os._exit(1)
    desk = Desk(Bridge(settings), out)
    desk.say({"ready": ray.__version__})
    asyncio.run(_serve(desk))
    os._exit(0)  # without a word to Ray: what runs there is to go on
