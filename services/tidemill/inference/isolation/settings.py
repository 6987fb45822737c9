"""Settings of a runtime as text, for the process that loads the model."""

from dataclasses import replace

from tidemill import records
from tidemill.inference.runtimes.base import Settings


def to_text(settings: Settings) -> str:
    """What `from_text` reads: everything but what the server alone can do."""
    return records.encode(replace(settings, invoke=None, metrics=None)).decode()


def from_text(text: str) -> Settings:
    """The settings. Raises DataLoss."""
    return records.decode(Settings, text.encode())
