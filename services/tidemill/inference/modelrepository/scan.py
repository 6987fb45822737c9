"""Finds the models of a repository, their configurations and their versions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tidemill import names
from tidemill.errors import Exhausted, Invalid, NotFound
from tidemill.inference.desired import Version
from tidemill.inference.inputs import shown
from tidemill.inference.modelconfig.declared import FILE, Declared
from tidemill.inference.modelconfig.text import MAX_BYTES
from tidemill.inference.modelrepository import folders

MAX_SIDE_FILE = 64 << 20
"""Bytes of a file that a configuration names: labels, samples, states."""
MOST_VERSIONS = 4096
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Found:
    """A model as its folder is now.

    Args:
        known: numbers of all versions that are there.
        chosen: those to serve, by the model's policy.
        versions: what is known of each that was asked for.
    """

    known: tuple[int, ...]
    chosen: tuple[int, ...]
    versions: Mapping[int, Version] = field(default_factory=dict)


class Scanner:
    """Reads the folders of a repository; blocking.

    Args:
        root: the repository.
        largest: most bytes that the files given in place of a folder may have together.

    Raises:
        NotFound: there is no such directory.
    """

    def __init__(self, root: Path, largest: int) -> None:
        try:
            self.root = root.resolve(strict=True)
        except OSError as error:
            raise NotFound(f"the model repository {root} cannot be read", reason="NO_REPOSITORY") from error
        if not self.root.is_dir():
            raise NotFound(f"the model repository {root} is no directory", reason="NO_REPOSITORY")
        self._largest = largest

    def models(self) -> list[str]:
        """Names of the folders that can be models. Raises NotFound when the repository cannot be read."""
        return [name for name in folders.subfolders(self.root, self.root) if names.is_name(name)]

    def scan(self, model: str, override: str = "", also: Iterable[int] = ()) -> Found:
        """A model as its folder is now.

        Args:
            model: its name.
            override: its configuration as JSON, in place of that in the folder; "" = none.
            also: versions that are wanted beside those of the policy.

        Raises:
            NotFound: there is no such folder, or a file is missing.
            Invalid: its configuration is wrong, or it leaves the repository.
        """
        names.check(model, "model")
        folder = folders.resolved(self.root, self.root / model)
        written = self._written(folder)
        declared = Declared(model, written, override)
        known = [int(name) for name in folders.subfolders(self.root, folder) if _NUMBER.fullmatch(name)]
        if len(known) > MOST_VERSIONS:
            raise Invalid(f"a model may have at most {MOST_VERSIONS} versions", reason="TOO_LARGE")
        chosen = declared.policy.choose(known)
        wanted = sorted({*chosen, *(number for number in also if number in known)})
        side = {path: folders.read(self.root, folder, path, MAX_SIDE_FILE) for path in declared.files}
        sides = b"".join(path.encode() + b"\0" + data for path, data in sorted(side.items()))
        written = override.encode() if override else written or b""
        versions = {}
        for number in wanted:
            directory = folder / str(number)
            entries = folders.listing(self.root, directory)
            kind = declared.kind(list(entries))
            configuration = declared.configuration(kind, side.__getitem__)
            versions[number] = Version(
                model=model,
                number=number,
                format=kind.runtime,
                artifact=folders.fingerprint(entries, written, sides),
                configuration=configuration,
                directory=folders.resolved(self.root, directory),
            )
        return Found(tuple(sorted(known)), tuple(chosen), versions)

    def given(self, model: str, config: str, files: Mapping[str, bytes]) -> Found:
        """A model that is all in a request: nothing of its folder is used, and it may hold no code.

        Raises:
            Invalid: configuration or paths are wrong, or it is of a kind that holds code.
            Exhausted: the files are too large.
        """
        names.check(model, "model")
        check_given(files, self._largest)
        declared = Declared(model, None, config)
        by_number: dict[int, dict[str, bytes]] = {}
        side: dict[str, bytes] = {}
        for path, data in files.items():
            head, _, rest = path.partition("/")
            if rest and _NUMBER.fullmatch(head):
                by_number.setdefault(int(head), {})[rest] = data
            else:
                side[path] = data
        missing = [path for path in declared.files if path not in side]
        if missing:
            raise Invalid(f"the configuration names '{missing[0]}', which is not given", reason="INVALID_CONFIG")
        chosen = declared.policy.choose(by_number)
        versions = {}
        for number in chosen:
            kind = declared.kind(list(by_number[number]))
            versions[number] = Version(
                model=model,
                number=number,
                format=kind.runtime,
                artifact=folders.fingerprint({}, config.encode(), *(data for _, data in sorted(files.items()))),
                configuration=declared.configuration(kind, side.__getitem__, trusted=False),
                overrides=by_number[number],
            )
        return Found(tuple(sorted(by_number)), tuple(chosen), versions)

    def _written(self, folder: Path) -> bytes | None:
        try:
            return folders.read(self.root, folder, FILE, MAX_BYTES)
        except NotFound:
            return None


def check_given(files: Mapping[str, bytes], largest: int) -> None:
    """Return when these can be the files of a model.

    Raises:
        Invalid: a path is absolute, leads upwards, or has characters that no file of a model has.
        Exhausted: they are too large together.
    """
    if len(files) > 1024:
        raise Invalid(f"at most 1024 files can be given, not {len(files)}", reason="TOO_LARGE")
    for path in files:
        parts = path.split("/")
        if not path or path != PurePosixPath(path).as_posix() or not all(map(names.is_name, parts)) or len(parts) > 8:
            raise Invalid(f"'{shown(path)}' is no path of a file of a model", reason="INVALID_PATH")
    size = sum(map(len, files.values()))
    if size > largest:
        raise Exhausted(f"the files have {size} bytes; at most {largest} are loaded", reason="TOO_LARGE")
