"""`tidemill catalogue`: what a job can be made of."""

import argparse
import asyncio
from collections.abc import Sequence

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import print_json, print_table, to_json
from tidemill.clients.training import TrainingClient


class Catalogue(Command):
    """Lists models, data sets, optimizers, strategies, schedules and codecs, with their parameters."""

    help = "list models, data sets and optimizers, with their parameters"
    examples = ("tidemill catalogue",)

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was listed."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with where.client("training", TrainingClient) as client:
        found = await client.catalogue()
    if options.json:
        print_json(to_json(found))
        return 0
    _show("model", found.models)
    for kind, entries in (
        ("data set", found.datasets),
        ("optimizer", found.optimizers),
        ("strategy", found.strategies),
        ("schedule", found.schedules),
        ("codec", found.codecs),
    ):
        print()
        _show(kind, entries)
    return 0


def _show(kind: str, entries: Sequence[pb.CatalogueEntry]) -> None:
    rows: list[tuple[str, str]] = []
    for entry in entries:
        rows.append((entry.name, entry.description))
        rows += [(f"  {p.name}", f"{p.type} = {p.default_json}: {p.description}") for p in entry.parameters]
    print_table([kind, ""], rows, fold=[""], empty=f"no {kind}")
