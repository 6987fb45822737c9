"""Nothing outlives the shard."""

from tidemill.parameters.durability._unkept import Unkept


class Nothing(Unkept):
    """What was not applied yet is acknowledged, too."""

    late = False
