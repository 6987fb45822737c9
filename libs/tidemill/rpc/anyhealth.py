"""Health that answers for any name, for clients that ask by whatever name they give to a server."""

from collections.abc import Collection
from typing import Any

from grpc_health.v1 import health, health_pb2


class AnyHealth(health.HealthServicer):  # type: ignore[misc] # grpcio's has no types
    """Says of services that are not here what it says of the server as a whole.

    Args:
        names: of the services that are here.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = frozenset(names)

    def Check(self, request: Any, context: Any) -> Any:
        """The state of a service, or of the server."""
        return super().Check(request if request.service in self._names else health_pb2.HealthCheckRequest(), context)
