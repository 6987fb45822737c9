"""Asynchronous: nobody waits for anybody."""

from tidemill.parameters.consistency.live import Live
from tidemill.parameters.definition import Definition
from tidemill.parameters.part import Part
from tidemill.parameters.rule import Rule


class Asp(Live):
    """Workers read and write as they come; nothing bounds the age of a gradient's parameters (Dean et al. 2012)."""

    def __init__(self, definition: Definition, part: Part, rule: Rule) -> None:
        super().__init__(definition, part, rule, None)
