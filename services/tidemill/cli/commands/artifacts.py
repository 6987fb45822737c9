"""`tidemill artifacts`: blobs and artifacts."""

import argparse
import asyncio
from pathlib import Path

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import console, pairs, print_fields, print_json, print_table, size, to_json, when
from tidemill.cli.values import texts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.errors import Invalid, NotFound


class Artifacts(Command):
    """Lists, shows, uploads, downloads and deletes artifacts."""

    help = "list, show, upload, download or delete artifacts"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        actions = ["list", "show", "upload", "download", "delete"]
        parser.add_argument("action", nargs="?", default="list", choices=actions)
        parser.add_argument("subject", nargs="*", help="digest of an artifact; for `upload`: files")
        parser.add_argument(
            "--kind", default="", help="for `upload` and `list`: model, checkpoint, dataset ... (dataset)"
        )
        parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="for `upload`")
        parser.add_argument("--to", type=Path, default=".", help="for `download`: directory (%(default)s)")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        if options.action != "list" and not options.subject:
            raise Invalid(f"artifacts {options.action}: which {'files' if options.action == 'upload' else 'artifact'}?")
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with ArtifactsClient(where.artifacts) as client:
        if options.action == "list":
            await _list(client, options)
        elif options.action == "delete":
            for digest in options.subject:
                await client.delete_artifact(digest)
        elif options.action == "download":
            for digest in options.subject:
                await _download(client, digest, options)
        elif options.action == "upload":
            files = {Path(path).name: Path(path) for path in options.subject}
            made = await client.create_artifact(
                options.kind or "dataset", files, labels=texts(options.label, "--label")
            )
            print_json(to_json(made)) if options.json else console().print(made.digest)
        else:
            for digest in options.subject:
                await _show(client, digest, options)
    return 0


async def _list(client: ArtifactsClient, options: argparse.Namespace) -> None:
    found = [artifact async for artifact in client.list_artifacts(kind=options.kind)]
    if options.json:
        print_json([to_json(artifact) for artifact in found])
        return
    rows = [
        (a.digest[:16], a.kind, len(a.files), size(a.size), ", ".join(a.references), when(a.create_time)) for a in found
    ]
    print_table(["digest", "kind", "files#", "size#", "needed by", "created"], rows, empty="no artifacts")


async def _show(client: ArtifactsClient, digest: str, options: argparse.Namespace) -> None:
    artifact = await client.get_artifact(await _complete(client, digest))
    if options.json:
        print_json(to_json(artifact))
        return
    print_fields(
        [
            ("digest", artifact.digest),
            ("kind", artifact.kind),
            ("labels", pairs(artifact.labels)),
            ("needed by", ", ".join(artifact.references)),
            ("created", when(artifact.create_time)),
        ]
    )
    print_table(["file", "size#", "SHA-256"], [(f.path, size(f.size), f.sha256) for f in artifact.files])


async def _download(client: ArtifactsClient, digest: str, options: argparse.Namespace) -> None:
    artifact = await client.get_artifact(await _complete(client, digest))
    for file in artifact.files:
        # The service has checked the path: valid names joined by slashes, so it stays below the directory.
        target = options.to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        await client.download_to(file.sha256, target)
        if not options.json:
            console().print(str(target))
    if options.json:
        print_json(to_json(artifact))


async def _complete(client: ArtifactsClient, given: str) -> str:
    """The one digest that starts with `given`: tables show the first 16 digits only."""
    if len(given) == 64:
        return given
    found = [artifact.digest async for artifact in client.list_artifacts() if artifact.digest.startswith(given)]
    if len(found) != 1:
        raise NotFound(f"{len(found)} artifacts start with {given[:64]!r}", reason="NOT_ONE_ARTIFACT")
    return found[0]
