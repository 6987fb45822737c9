"""Asynchronous: nobody waits for anybody."""

from tidemill.parameters.consistency.live import Live
from tidemill.parameters.definition import Definition
from tidemill.parameters.optimizers.base import Optimizer
from tidemill.parameters.part import Part


class Asp(Live):
    """Workers read and write as they come; nothing bounds the age of a gradient's parameters (Dean et al. 2012)."""

    def __init__(self, definition: Definition, part: Part, optimizer: Optimizer) -> None:
        super().__init__(definition, part, optimizer, None)
