"""`tidemill models`: models, versions and aliases."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import counted, print_json, to_json
from tidemill.cli.parser import subcommands
from tidemill.cli.values import label, whole
from tidemill.cli.views import show_model, show_models, show_version, show_versions
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.registry import RegistryClient
from tidemill.errors import FailedPrecondition, NotFound

Add = Callable[[str, str], argparse.ArgumentParser]


class Models(Command):
    """Lists, shows, tags and deletes models and versions, and moves aliases."""

    help = "list, show, tag or delete models and versions; move aliases"
    examples = (
        "tidemill models",
        "tidemill models versions digits --filter 'metrics.accuracy > 0.95'",
        "tidemill models alias digits 2",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)
        parser.set_defaults(filter="")
        add = subcommands(parser, "list")
        _reads(add)
        _writes(add)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        if options.action == "tag" and not (options.tag or options.remove):
            options.parser.error("--tag or --remove is required")
        return asyncio.run(_run(options))


def _reads(add: Add) -> None:
    listed = add("list", "list models")
    versions = add("versions", "list the versions of a model, with their metrics")
    versions.add_argument("model", metavar="MODEL", help="name of the model")
    for action, example in ((listed, 'tags.team = "vision"'), (versions, "metrics.accuracy > 0.95")):
        action.add_argument(
            "--filter", metavar="TEXT", default="", help=f"only those that meet it, such as '{example}'"
        )
        connection.add_arguments(action, inner=True)
    show = add("show", "show a model, or one version of it")
    show.add_argument("model", metavar="MODEL", help="name of the model")
    show.add_argument("version", metavar="VERSION", nargs="?", default="", help="number or alias")
    connection.add_arguments(show, inner=True)


def _writes(add: Add) -> None:
    alias = add("alias", "point an alias at a version; inference follows at once")
    alias.add_argument("model", metavar="MODEL", help="name of the model")
    alias.add_argument("version", metavar="VERSION", type=whole(1), help="number of the version")
    alias.add_argument("--alias", metavar="ALIAS", default="champion", help="the alias to move (%(default)s)")
    unalias = add("unalias", "remove an alias; the version stays")
    unalias.add_argument("model", metavar="MODEL", help="name of the model")
    unalias.add_argument("alias", metavar="ALIAS", help="the alias to remove")
    tag = add("tag", "set or remove tags of a model or a version")
    tag.add_argument("model", metavar="MODEL", help="name of the model")
    tag.add_argument("version", metavar="VERSION", nargs="?", default="", help="number or alias")
    tag.add_argument("--tag", action="append", type=label, default=[], metavar="NAME=VALUE", help="repeatable")
    tag.add_argument("--remove", action="append", default=[], metavar="NAME", help="repeatable")
    delete = add("delete", "delete a version, or a model; files that nothing else needs go too")
    delete.add_argument("model", metavar="MODEL", help="name of the model")
    delete.add_argument("version", metavar="VERSION", nargs="?", default="", help="number or alias")
    delete.add_argument("--force", action="store_true", help="delete a model together with its versions and aliases")
    for action in (alias, unalias, tag, delete):
        connection.add_arguments(action, inner=True)


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with where.client("registry", RegistryClient) as client:
        await _ACTIONS[options.action](client, options, where)
    return 0


async def _list(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    models = [model async for model in client.list_models(filter=options.filter)]
    if options.json:
        print_json([to_json(model) for model in models])
    else:
        show_models(models)


async def _versions(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    versions = [v async for v in client.list_versions(options.model, filter=options.filter)]
    if options.json:
        print_json([to_json(version) for version in versions])
    else:
        show_versions(versions)


async def _show(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if options.version:
        version = await client.get_version(options.model, options.version)
        print_json(to_json(version)) if options.json else show_version(version)
        return
    model = await client.get_model(options.model)
    aliases = [alias async for alias in client.list_aliases(options.model)]
    if options.json:
        print_json({**to_json(model), "aliases": [to_json(alias) for alias in aliases]})
    else:
        show_model(model, aliases)


async def _alias(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    alias = await client.set_alias(options.model, options.alias, options.version)
    if options.json:
        print_json(to_json(alias))
    else:
        before = f" (before: {alias.previous_version})" if alias.previous_version else ""
        print(f"{alias.name} points at version {alias.version}{before}")


async def _unalias(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    alias = await client.get_alias(options.model, options.alias)
    await client.delete_alias(options.model, options.alias, etag=alias.etag)
    _deleted(alias.name, options)


async def _tag(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if options.version:
        version = await client.get_version(options.model, options.version)
        number, tags = version.version, _tags(version.tags, options)
        version = await client.update_version(options.model, number, tags=tags, etag=version.etag)
        print_json(to_json(version)) if options.json else show_version(version)
        return
    model = await client.get_model(options.model)
    model = await client.update_model(options.model, tags=_tags(model.tags, options), etag=model.etag)
    if options.json:
        print_json(to_json(model))
    else:
        show_model(model, [alias async for alias in client.list_aliases(options.model)])


def _tags(before: Mapping[str, str], options: argparse.Namespace) -> dict[str, str]:
    kept = {**before, **dict(options.tag)}
    return {name: value for name, value in kept.items() if name not in options.remove}


async def _delete(client: RegistryClient, options: argparse.Namespace, where: connection.Connection) -> None:
    if options.version:
        versions = [await client.get_version(options.model, options.version)]
        name = versions[0].name
        await client.delete_version(options.model, versions[0].version)
    else:
        name = (await client.get_model(options.model)).name
        versions = [version async for version in client.list_versions(options.model)]
        if versions and not options.force:
            raise FailedPrecondition(
                f"{name} has {counted(len(versions), 'version')}: --force deletes what belongs to it too"
            )
        await client.delete_model(options.model, force=options.force)
    _deleted(name, options)
    # Their files are kept while something refers to them: what is deleted refers no more.
    async with where.client("artifacts", ArtifactsClient) as artifacts:
        for version in versions:
            try:
                await artifacts.remove_reference(version.artifact, version.name)
                await artifacts.delete_artifact(version.artifact)
            except (NotFound, FailedPrecondition):  # gone already, or needed by something else
                continue


def _deleted(name: str, options: argparse.Namespace) -> None:
    if options.json:
        print_json({"deleted": [name]})
    else:
        print(f"{name} is deleted")


Action = Callable[[RegistryClient, argparse.Namespace, connection.Connection], Awaitable[None]]
_ACTIONS: dict[str, Action] = {
    "list": _list,
    "versions": _versions,
    "show": _show,
    "alias": _alias,
    "unalias": _unalias,
    "tag": _tag,
    "delete": _delete,
}
