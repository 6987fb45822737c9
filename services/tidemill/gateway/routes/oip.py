"""The Open Inference Protocol over HTTP."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.compression import encoded
from tidemill.gateway.metadata import MetadataCache
from tidemill.gateway.problems import STATUSES, Refused, headers_of, status_of
from tidemill.gateway.route import Handler, Table
from tidemill.gateway.routes import oip_control, oip_infer, oip_models
from tidemill.gateway.site import Front

_STATUSES: Mapping[errors.Code, int] = {
    # All that is the caller's fault is 400, as in the servers whose clients come here.
    **dict.fromkeys(errors.Code, 400),
    **{
        code: STATUSES[code]
        for code in (
            errors.Code.INTERNAL,
            errors.Code.UNKNOWN,
            errors.Code.DATA_LOSS,
            errors.Code.NOT_FOUND,
            errors.Code.UNAVAILABLE,
            errors.Code.UNIMPLEMENTED,
            errors.Code.UNAUTHENTICATED,
            errors.Code.PERMISSION_DENIED,
            errors.Code.RESOURCE_EXHAUSTED,
            errors.Code.DEADLINE_EXCEEDED,
        )
    },
}


def _compressing(handler: Handler) -> Handler:
    """The handler, whose answers are compressed if the caller wants that."""

    async def handle(request: Request) -> Response:
        return await encoded(request, await handler(request))

    return handle


def front(inference: Backend, bodies: Bodies, metadata: MetadataCache) -> Front:
    """The protocol under `/v2`."""
    routes = [
        *oip_models.routes(inference),
        *oip_infer.routes(inference, bodies, metadata),
        *oip_control.routes(inference, bodies),
    ]
    table = Table(replace(route, handler=_compressing(route.handler)) for route in routes)
    return Front(owns=owns, table=table, unknown=_unknown, render=render, inflates=True)


def owns(path: str) -> bool:
    """Whether a path belongs to the protocol."""
    return path == "/v2" or path.startswith("/v2/")


def _unknown(verb: str, path: str, others: Collection[str]) -> errors.TidemillError:
    if others:
        allow = ", ".join(sorted(others))
        return Refused(405, f"{verb} is not allowed here", reason="METHOD_NOT_ALLOWED", headers={"Allow": allow})
    return errors.NotFound("there is no such path", reason="UNKNOWN_PATH")


def render(error: errors.TidemillError, request_id: str) -> Response:
    """The response to a request that ended with `error`, in the words of the protocol."""
    return Response(
        oip_infer.error_text(error), status_of(error, _STATUSES), headers_of(error), media_type="application/json"
    )
