"""Stale-synchronous: nobody is more than so many steps ahead of the slowest."""

from tidemill.parameters.consistency.live import Live
from tidemill.parameters.definition import Definition
from tidemill.parameters.part import Part
from tidemill.parameters.rule import Rule


class Ssp(Live):
    """A worker at clock c reads when all are at c - s at least, and so sees all updates before that (Ho et al. 2013).

    It is held against the clock of the worker itself, not that of the slowest: the bound would creep. A staleness of 0
    is `Bsp`, where the gradients of a step make one step of the optimizer together.
    """

    def __init__(self, definition: Definition, part: Part, rule: Rule) -> None:
        super().__init__(definition, part, rule, definition.consistency.staleness)
