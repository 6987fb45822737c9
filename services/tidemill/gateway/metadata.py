"""What models take and give, remembered for a moment: a predict request needs it before it can be converted."""

from collections import OrderedDict

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.clock import Clock
from tidemill.gateway.backends import Backend

SECONDS = 1.0
"""How long an answer is believed: an alias may move at any time."""
ENTRIES = 1024


class MetadataCache:
    """The metadata of models at the inference service.

    Args:
        inference: the service.
        clock: times the entries.
    """

    def __init__(self, inference: Backend, clock: Clock) -> None:
        self._inference = inference
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], tuple[float, pb.ModelMetadataResponse]] = OrderedDict()

    async def get(self, model: str, version: str) -> tuple[pb.ModelMetadataResponse, bool]:
        """The metadata of a version of a model, and whether it is remembered. Raises what the service raises."""
        key = (model, version)
        now = self._clock.monotonic()
        known = self._entries.get(key)
        if known is not None and now - known[0] < SECONDS:
            return known[1], True
        request = pb.ModelMetadataRequest(name=model, version=version)
        found: pb.ModelMetadataResponse = await self._inference.unary("GRPCInferenceService.ModelMetadata", request)
        self._entries[key] = (now, found)
        self._entries.move_to_end(key)
        while len(self._entries) > ENTRIES:
            self._entries.popitem(last=False)
        return found, False

    def forget(self, model: str, version: str) -> None:
        """Ask again next time."""
        self._entries.pop((model, version), None)
