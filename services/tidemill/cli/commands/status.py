"""`tidemill status`: whether every service answers."""

import argparse
import asyncio

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.health import Health, ask, ask_http
from tidemill.cli.output import print_json, print_table
from tidemill.clients.registry import RegistryClient
from tidemill.errors import TidemillError


class Status(Command):
    """Asks every service for its health."""

    help = "show whether all services can serve"
    examples = ("tidemill status", "tidemill status --json")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when every service can serve."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    asked = [ask(name, where.addresses[name]) for name in ("registry", "artifacts", "training", "inference")]
    asked.append(ask_http("gateway", where.addresses["gateway"]))
    asked += [ask(name, address) for name, address in await _shards(where)]
    answers = await asyncio.gather(*asked)
    if options.json:
        print_json([{"service": a.service, "address": a.address, "status": a.status} for a in answers])
    else:
        print_table(["service", "status", "address"], [(a.service, a.status, a.address) for a in answers])
    return 0 if all(answer.status == Health.SERVING for answer in answers) else 1


async def _shards(where: connection.Connection) -> list[tuple[str, str]]:
    """The shards that a running `tidemill up` keeps, or else those that the registry knows."""
    if where.shards is not None:
        return [(f"parameters.shard-{number}", where.stack.shard(number)) for number in range(where.shards)]
    try:
        async with RegistryClient(where.addresses["registry"], timeout=3) as client:
            found = await client.list_instances("parameters")
    except TidemillError:  # the registry's own line says that it does not answer
        return []
    return [(instance.name.removeprefix("instances/"), instance.address) for instance in found]
