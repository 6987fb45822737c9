"""`tidemill status`: whether every service answers, and what is live."""

import argparse
import asyncio

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.health import Health, ask, ask_http
from tidemill.cli.output import print_json, print_table
from tidemill.clients.registry import RegistryClient
from tidemill.errors import TidemillError


class Status(Command):
    """Asks every service for its health, and the registry for the live instances."""

    help = "show the health of all services"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when every service can serve."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    services = {name: getattr(where, name) for name in ("registry", "artifacts", "training", "inference")}
    asked = [ask(name, address) for name, address in services.items()]
    asked.append(ask_http("gateway", where.gateway))
    asked += [ask(name, address) for name, address in await _shards(where)]
    answers = await asyncio.gather(*asked)
    if options.json:
        print_json([{"service": a.service, "address": a.address, "status": a.status} for a in answers])
    else:
        print_table(["service", "address", "status"], [(a.service, a.address, a.status) for a in answers])
    return 0 if all(answer.status == Health.SERVING for answer in answers) else 1


async def _shards(where: connection.Connection) -> list[tuple[str, str]]:
    try:
        async with RegistryClient(where.registry, timeout=3) as client:
            found = await client.list_instances("parameters")
    except TidemillError:  # the registry's own line says that it does not answer
        return []
    return [(instance.name.removeprefix("instances/"), instance.address) for instance in found]
