"""`tidemill models`: models, versions and aliases."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import pairs, print_fields, print_json, print_table, to_json, when
from tidemill.cli.values import texts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.registry import RegistryClient
from tidemill.errors import FailedPrecondition, Invalid, NotFound


class Models(Command):
    """Lists, shows, tags and deletes models and versions, and moves aliases."""

    help = "list, show, tag or delete models; move aliases"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("action", nargs="?", default="list", choices=sorted(_ACTIONS))
        parser.add_argument("model", nargs="?", default="", help="name of the model")
        parser.add_argument("version", nargs="?", default="", help="number or alias; for `alias`: the version's number")
        parser.add_argument("--alias", default="champion", help="for `alias`: the alias to move (%(default)s)")
        parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="for `tag`")
        parser.add_argument("--filter", default="", help="for `list` and `versions`, as in the registry's API")
        parser.add_argument("--force", action="store_true", help="for `delete`: a model with all its versions")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        if options.action != "list" and not options.model:
            raise Invalid(f"models {options.action}: which model?")
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with RegistryClient(where.registry) as client:
        await _ACTIONS[options.action](client, options, where)
    return 0


async def _list(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    models = [model async for model in client.list_models(filter=options.filter)]
    if options.json:
        print_json([to_json(model) for model in models])
        return
    rows = [
        (m.name.removeprefix("models/"), m.latest_version or "", pairs(m.tags), when(m.update_time)) for m in models
    ]
    print_table(["model", "latest#", "tags", "changed"], rows, empty="no models")


async def _versions(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    versions = [v async for v in client.list_versions(options.model, filter=options.filter)]
    if options.json:
        print_json([to_json(version) for version in versions])
        return
    rows = [
        (v.version, ", ".join(v.aliases), v.format, pairs(v.metrics), v.lineage.job, when(v.create_time))
        for v in versions
    ]
    print_table(["version#", "aliases", "format", "metrics", "job", "created"], rows, empty="no versions")


async def _show(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if not options.version:
        model = await client.get_model(options.model)
        aliases = [alias async for alias in client.list_aliases(options.model)]
        if options.json:
            print_json({**to_json(model), "aliases": [to_json(alias) for alias in aliases]})
            return
        shown = {alias.name.rpartition("/")[2]: alias.version for alias in aliases}
        print_fields(
            [("model", model.name), ("description", model.description), ("latest version", model.latest_version)]
        )
        print_fields([("aliases", pairs(shown)), ("tags", pairs(model.tags)), ("created", when(model.create_time))])
        return
    _print_version(await client.get_version(options.model, options.version), options.json)


def _print_version(version: pb.ModelVersion, as_json: bool) -> None:
    if as_json:
        print_json(to_json(version))
        return
    signature = version.signature

    def tensors(specs: object) -> str:
        return "; ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in specs)  # type: ignore[attr-defined]

    print_fields(
        [
            ("version", version.name),
            ("aliases", ", ".join(version.aliases)),
            ("format", version.format),
            ("artifact", version.artifact),
            ("inputs", tensors(signature.inputs)),
            ("outputs", tensors(signature.outputs)),
            ("labels", ", ".join(signature.labels)),
            ("metrics", pairs(version.metrics)),
            ("tags", pairs(version.tags)),
            ("job", version.lineage.job),
            ("data sets", ", ".join(version.lineage.dataset_digests)),
            ("code revision", version.lineage.code_revision),
            ("created", when(version.create_time)),
        ]
    )


async def _alias(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if not options.version.isdigit():
        raise Invalid("models alias: which version number?")
    alias = await client.set_alias(options.model, options.alias, int(options.version))
    if options.json:
        print_json(to_json(alias))
    else:
        before = f" (was {alias.previous_version})" if alias.previous_version else ""
        print_fields([(alias.name, f"-> version {alias.version}{before}")])


async def _tag(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    given = texts(options.tag, "--tag")
    if options.version:
        version = await client.get_version(options.model, options.version)
        number = str(version.version)
        tags = {**version.tags, **given}
        version = await client.update_version(options.model, number, tags=tags, etag=version.etag)
        _print_version(version, options.json)
        return
    model = await client.get_model(options.model)
    model = await client.update_model(options.model, tags={**model.tags, **given}, etag=model.etag)
    if options.json:
        print_json(to_json(model))
    else:
        print_fields([("model", model.name), ("tags", pairs(model.tags))])


async def _delete(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if options.version:
        versions = [await client.get_version(options.model, options.version)]
        await client.delete_version(options.model, str(versions[0].version))
    else:
        versions = [version async for version in client.list_versions(options.model)]
        await client.delete_model(options.model, force=options.force)
    # Their files are kept while something refers to them: what is deleted refers no more.
    async with ArtifactsClient(where.artifacts) as artifacts:
        for version in versions:
            try:
                await artifacts.remove_reference(version.artifact, version.name)
                await artifacts.delete_artifact(version.artifact)
            except (NotFound, FailedPrecondition):  # gone already, or needed by something else
                continue


Action = Callable[[RegistryClient, argparse.Namespace, connection.Connection], Awaitable[None]]
_ACTIONS: dict[str, Action] = {
    "list": _list,
    "versions": _versions,
    "show": _show,
    "alias": _alias,
    "tag": _tag,
    "delete": _delete,
}
