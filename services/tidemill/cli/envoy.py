"""Configuration of Envoy, which spreads calls over several servers and lets no call fail when one of them dies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.errors import invalid

INFER = "/inference.GRPCInferenceService/ModelInfer"
"""The call that may be made twice: it changes nothing."""
SAFE_RETRIES = "connect-failure,refused-stream,unavailable"
"""The server has done nothing, or says that it has not."""
MORE_RETRIES = f"{SAFE_RETRIES},reset"
"""Also when it has gone in the middle of it."""
STREAMS = 32
"""Calls at a time on a connection to a server; more make another one, and so reach all processes of the server."""
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancer:
    """What Envoy is to do.

    Args:
        upstreams: host and port of each server.
        listen: where clients call.
        admin: where Envoy shows its state, if anywhere.
        retries: attempts after the first; 0 = none.
        timeout: longest time of a call with all its attempts, in seconds, streams apart.
        check_seconds: from one health check of a server to the next.
        request_bytes: largest request that can be sent again, and so survives the server that had it.
        calls: most calls at a time to all servers together; more are refused at once.
    """

    upstreams: Sequence[tuple[str, int]]
    listen: tuple[str, int]
    admin: tuple[str, int] | None = None
    retries: int = 3
    timeout: float = 60.0
    check_seconds: float = 1.0
    request_bytes: int = (64 << 20) + (1 << 16)
    calls: int = 4096

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise invalid("upstream", "must be given at least once")
        if len(set(self.upstreams)) < len(self.upstreams):
            raise invalid("upstream", "must not be given twice")
        if not 0 <= self.retries <= 10:
            raise invalid("retries", "must be in [0, 10]")

    @property
    def linger_seconds(self) -> float:
        """How long a server must go on answering after it has said NOT_SERVING, until no call goes to it any more.

        Two checks must have seen it, the second of which comes soon after the first; each may take its whole time.
        """
        return 3 * self.check_seconds

    def bootstrap(self) -> dict[str, Any]:
        """The configuration that Envoy starts with, for JSON or YAML."""
        found: dict[str, Any] = {
            "static_resources": {"listeners": [self._listener()], "clusters": [self._cluster()]},
            # Sockets are not endless.
            "overload_manager": {
                "resource_monitors": [
                    {
                        "name": "envoy.resource_monitors.global_downstream_max_connections",
                        "typed_config": {
                            "@type": _type(
                                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
                            ),
                            "max_active_downstream_connections": 50_000,
                        },
                    }
                ]
            },
        }
        if self.admin is not None:
            found["admin"] = {"address": _address(self.admin)}
        return found

    def _listener(self) -> dict[str, Any]:
        manager = {
            "@type": _type(_MANAGER),
            "stat_prefix": "inference",
            "codec_type": "AUTO",
            "http2_protocol_options": {
                "max_concurrent_streams": 1024,
                "initial_stream_window_size": 1 << 20,
                "initial_connection_window_size": 16 << 20,
            },
            # A stream may be silent between two requests for as long as the servers allow.
            "stream_idle_timeout": "0s",
            "route_config": {
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [self._infer(), self._others()]}]
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": _type("envoy.extensions.filters.http.router.v3.Router")},
                }
            ],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        return {"name": "grpc", "address": _address(self.listen), "filter_chains": [chain]}

    def _infer(self) -> dict[str, Any]:
        route = {"cluster": "inference", "timeout": _seconds(self.timeout), **self._retry(MORE_RETRIES)}
        return {"match": {"path": INFER}, "request_body_buffer_limit": self.request_bytes, "route": route}

    def _others(self) -> dict[str, Any]:
        # Streams among them, which last as long as their clients want.
        return {
            "match": {"prefix": "/"},
            "route": {"cluster": "inference", "timeout": "0s", **self._retry(SAFE_RETRIES)},
        }

    def _retry(self, when: str) -> dict[str, Any]:
        if not self.retries:
            return {}
        policy = {
            "retry_on": when,
            "num_retries": self.retries,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": _type("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
                    },
                }
            ],
            "host_selection_retry_max_attempts": 10,
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        }
        return {"retry_policy": policy}

    def _cluster(self) -> dict[str, Any]:
        servers = [{"endpoint": {"address": _address(upstream)}} for upstream in self.upstreams]
        return {
            "name": "inference",
            "type": "STRICT_DNS",
            "connect_timeout": "1s",
            # A server that has gone has the fewest calls, and would be chosen again and again.
            "lb_policy": "ROUND_ROBIN",
            "load_assignment": {"cluster_name": "inference", "endpoints": [{"lb_endpoints": servers}]},
            "typed_extension_protocol_options": {
                _OPTIONS: {
                    "@type": _type(_OPTIONS),
                    "explicit_http_config": {
                        "http2_protocol_options": {
                            "max_concurrent_streams": STREAMS,
                            "initial_stream_window_size": 1 << 20,
                            "initial_connection_window_size": 16 << 20,
                            # A host that has gone without a word: its calls fail, and are made again elsewhere.
                            "connection_keepalive": {"interval": "10s", "timeout": "5s"},
                        }
                    },
                }
            },
            "health_checks": [
                {
                    "interval": _seconds(self.check_seconds),
                    "timeout": _seconds(self.check_seconds),
                    "no_traffic_interval": _seconds(self.check_seconds),
                    # One lost answer of a busy server is no reason to give all its calls to the others.
                    "unhealthy_threshold": 2,
                    "unhealthy_edge_interval": _seconds(self.check_seconds / 4),
                    "healthy_threshold": 1,
                    "grpc_health_check": {},
                }
            ],
            # No outlier detection: a server that it still keeps out would be missing when the other one dies.
            "common_lb_config": {
                # Without a threshold, with half of the servers down, calls go to all of them, dead or not.
                "healthy_panic_threshold": {"value": 0},
                # Envoy would gather changes for a second before those who send calls learn of them: not yet that a
                # server is back, when the other one dies.
                "update_merge_window": "0s",
            },
            "circuit_breakers": {
                "thresholds": [
                    {
                        "max_connections": self.calls,
                        "max_pending_requests": self.calls,
                        "max_requests": self.calls,
                        "retry_budget": {"budget_percent": {"value": 25}, "min_retry_concurrency": 64},
                    }
                ]
            },
        }


def _type(name: str) -> str:
    return f"type.googleapis.com/{name}"


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _address(where: tuple[str, int]) -> dict[str, Any]:
    return {"socket_address": {"address": where[0], "port_value": where[1]}}
