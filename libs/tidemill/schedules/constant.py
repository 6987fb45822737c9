"""A constant learning rate."""

from dataclasses import dataclass

from tidemill.schedules.base import Schedule, Warmup


class Constant(Schedule):
    """The same learning rate at all steps after the warm-up."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Warmup):
        """Parameters of `Constant`."""

    config: Config

    def at(self, step: int) -> float:
        """All of it."""
        return 1.0
