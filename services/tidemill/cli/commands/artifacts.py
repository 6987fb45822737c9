"""`tidemill artifacts`: sets of files, kept by their digests."""

import argparse
import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from tidemill.cli import connection, files
from tidemill.cli.commands.base import Command
from tidemill.cli.output import print_json, to_json
from tidemill.cli.parser import subcommands
from tidemill.cli.values import label
from tidemill.cli.views import show_artifact, show_artifacts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.errors import Invalid, NotFound

SHOWN_DIGITS = 16


class Artifacts(Command):
    """Lists, shows, uploads, downloads and deletes artifacts."""

    help = "list, show, upload, download or delete artifacts"
    examples = (
        "tidemill artifacts list --kind model",
        "tidemill artifacts upload data.csv --label source=survey",
        "tidemill artifacts download DIGEST --to DIR",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)
        parser.set_defaults(kind="")
        add = subcommands(parser, "list")
        listed = add("list", "list artifacts")
        listed.add_argument("--kind", default="", help="only those of this kind: model, checkpoint, dataset, logs ...")
        show = add("show", "show an artifact and its files")
        upload = add("upload", "make an artifact of files, and print its digest")
        upload.add_argument("files", nargs="+", metavar="FILE")
        upload.add_argument("--kind", default="dataset", help="model, checkpoint, dataset ... (%(default)s)")
        upload.add_argument("--label", action="append", type=label, default=[], metavar="NAME=VALUE", help="repeatable")
        download = add("download", "write the files of an artifact to a directory")
        download.add_argument("--to", type=Path, metavar="DIR", default=".", help="made when missing (%(default)s)")
        delete = add("delete", "delete artifacts that nothing needs")
        for action in (show, download):
            action.add_argument("digest", metavar="DIGEST", help="digest of the artifact, or how it begins")
        delete.add_argument("digests", nargs="+", metavar="DIGEST", help="digest of an artifact, or how it begins")
        for action in (listed, show, upload, download, delete):
            connection.add_arguments(action, inner=True)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with where.client("artifacts", ArtifactsClient) as client:
        await _ACTIONS[options.action](client, options)
    return 0


async def _list(client: ArtifactsClient, options: argparse.Namespace) -> None:
    found = [artifact async for artifact in client.list_artifacts(kind=options.kind)]
    if options.json:
        print_json([to_json(artifact) for artifact in found])
    else:
        show_artifacts(found)


async def _show(client: ArtifactsClient, options: argparse.Namespace) -> None:
    artifact = await client.get_artifact(await _complete(client, options.digest))
    if options.json:
        print_json(to_json(artifact))
    else:
        show_artifact(artifact)


async def _upload(client: ArtifactsClient, options: argparse.Namespace) -> None:
    given = files.by_name(options.files)
    made = await client.create_artifact(options.kind, given, labels=dict(options.label))
    if options.json:
        print_json(to_json(made))
    else:
        print(made.digest)


async def _download(client: ArtifactsClient, options: argparse.Namespace) -> None:
    digest = await _complete(client, options.digest)
    written = await client.download_artifact(digest, options.to)
    if options.json:
        print_json({"digest": digest, "files": {name: str(path) for name, path in written.items()}})
    else:
        for path in written.values():
            print(path)


async def _delete(client: ArtifactsClient, options: argparse.Namespace) -> None:
    deleted = []
    for given in options.digests:
        digest = await _complete(client, given)
        await client.delete_artifact(digest)
        deleted.append(digest)
        if not options.json:
            print(f"artifacts/{digest} is deleted")
    if options.json:
        print_json({"deleted": [f"artifacts/{digest}" for digest in deleted]})


async def _complete(client: ArtifactsClient, given: str) -> str:
    """The one digest that starts with `given`: tables show the first digits only."""
    start = given.removeprefix("artifacts/").lower()
    if not re.fullmatch("[0-9a-f]{1,64}", start):
        raise Invalid(f"{given[:64]!r} is not a digest, nor the beginning of one")
    if len(start) == 64:
        return start
    found = [artifact.digest async for artifact in client.list_artifacts() if artifact.digest.startswith(start)]
    if not found:
        raise NotFound(f"no artifact starts with {start}", reason="ARTIFACT_NOT_FOUND")
    if len(found) > 1:
        shown = ", ".join(digest[:SHOWN_DIGITS] for digest in found[:4])
        raise Invalid(f"{len(found)} artifacts start with {start}: {shown}{' ...' if len(found) > 4 else ''}")
    return found[0]


Action = Callable[[ArtifactsClient, argparse.Namespace], Awaitable[None]]
_ACTIONS: dict[str, Action] = {
    "list": _list,
    "show": _show,
    "upload": _upload,
    "download": _download,
    "delete": _delete,
}
