"""The OpenAPI document, and the page that shows it."""

import json
from collections.abc import Iterable, Mapping
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors, names
from tidemill.gateway import openapi
from tidemill.gateway.route import Handler, Route
from tidemill.gateway.schemas import Schema

FILES: Mapping[str, str] = {
    "index.html": "text/html",
    "docs.css": "text/css",
    "docs.js": "text/javascript",
    "schema.js": "text/javascript",
}
"""The files of the page, and their types."""
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes(others: Iterable[Route], components: Mapping[str, Schema], *, version: str) -> list[Route]:
    """The routes of the document of `others` and of itself, and of its page.

    Args:
        others: every other route.
        components: schemas by name, besides those of the protos.
        version: version of the API.
    """
    text = bytearray()

    async def document(_: Request) -> Response:
        return Response(bytes(text), headers={"Cache-Control": "no-cache"}, media_type="application/json")

    own = [
        _route("/openapi.json", "GetOpenApi", "This document.", document, "application/json"),
        _route("/docs", "GetDocs", "The page that shows this document.", _page, "text/html"),
        _route("/docs/{file}", "GetDocsFile", "A part of the page that shows this document.", _page, "text/plain"),
    ]
    made = openapi.document([*others, *own], components, title="Tidemill", version=version)
    text += json.dumps(made, separators=(",", ":")).encode()
    return own


def _route(path: str, identifier: str, text: str, handler: Handler, media: str) -> Route:
    schema: Schema = {"type": "object"} if media == "application/json" else {"type": "string"}
    operation = {
        **openapi.described("Documents", identifier, text),
        "responses": {"200": openapi.answer(text, {media: schema}), "default": openapi.PROBLEM},
    }
    return Route(verb="GET", path=path, handler=handler, operation=operation)


async def _page(request: Request) -> Response:
    name = request.path_params.get("file", "index.html")
    if name not in FILES:
        raise errors.NotFound(f"there is no file {names.check(name, 'file')}", reason="UNKNOWN_FILE")
    content = resources.files("tidemill.gateway").joinpath("docs", name).read_bytes()
    return Response(content, headers=PAGE_HEADERS, media_type=FILES[name])
