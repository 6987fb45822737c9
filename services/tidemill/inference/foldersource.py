"""Serves the models of a directory in the layout of Triton's model repositories."""

from pathlib import Path

from tidemill.inference.desired import Desired
from tidemill.inference.modelrepository.control import RepositoryControl
from tidemill.inference.modelrepository.manager import Manager, Mode
from tidemill.inference.modelrepository.scan import Scanner
from tidemill.inference.modelrepository.source import FolderSource
from tidemill.inference.models import Building, Models
from tidemill.inference.reconciler import Reconciler


def from_folder(building: Building) -> Models:
    """Models of the repository that the settings name.

    Raises:
        NotFound: there is no such directory.
    """
    config = building.config
    mode = Mode(config.model_control)
    scanner = Scanner(Path(config.model_repository), config.max_model_bytes)
    reconciler = Reconciler(
        building.loader(FolderSource(scanner.root, config.max_model_bytes)),
        building.repository,
        building.clock,
        settled=_nothing,
        concurrency=config.load_concurrency,
        retries=mode is not Mode.EXPLICIT,
    )
    manager = Manager(
        scanner, reconciler, building.clock, mode=mode, pause=config.poll_seconds, first=config.load_models
    )
    control = RepositoryControl(manager)
    return Models(
        starters=[control.start, manager.start],
        tasks=[manager.run],
        stoppers=[control.stop],
        closers=[reconciler.close],
        control=control,
    )


async def _nothing(desired: Desired) -> None:
    """Nothing is kept that could be tidied."""
