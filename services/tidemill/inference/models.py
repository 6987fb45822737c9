"""Where models come from, as the rest of the service sees it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.clock import Clock
from tidemill.inference.assembly import Assembler
from tidemill.inference.config import InferenceConfig
from tidemill.inference.control import ModelControl
from tidemill.inference.fronts.spool import Spool
from tidemill.inference.loader import Loader
from tidemill.inference.opened import Source
from tidemill.inference.repository import Repository
from tidemill.inference.runtimes.base import Settings
from tidemill.rpc.app import Hook
from tidemill.telemetry.setup import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """What every source of models is made with."""

    config: InferenceConfig
    repository: Repository
    assembler: Assembler
    settings: Settings
    telemetry: Telemetry
    clock: Clock
    spool: Spool | None = None

    def loader(self, source: Source) -> Loader:
        """What loads the versions of a source."""
        return Loader(
            source,
            self.settings,
            self.assembler,
            self.telemetry,
            largest_model=self.config.max_model_bytes,
            memory=self.config.max_model_memory,
            spool=self.spool,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """A source of models at work.

    Args:
        starters, tasks, stoppers, closers: as those of `App`.
        control: loads and unloads models by request; None where these are not for clients to say.
    """

    starters: Sequence[Hook] = ()
    tasks: Sequence[Hook] = ()
    stoppers: Sequence[Hook] = ()
    closers: Sequence[Hook] = ()
    control: ModelControl | None = None
