"""A copy on another process."""

from tidemill.parameters.durability._unkept import Unkept


class Replicated(Unkept):
    """Workers give every push to both copies (Schneider 1990): this one keeps nothing, but acknowledges late.

    Rounds come to the same bits on both, for what they make depends on no order of arrival. Without rounds, or in order
    of arrival, each copy applies the same pushes, once each, in an order of its own.
    """

    late = True
