"""RPCs as HTTP operations: a line that says how path, query and body become a request message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ROOT = "/api/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One RPC as an HTTP operation. What neither path nor body gives comes from the query, by field name.

    Args:
        verb: HTTP method.
        path: template under `/api/v1`.
        call: `Service.Method`.
        bind: request field -> its value, a template over the path parameters.
        body: request field that the JSON body is; `*` = the whole request; "" = no body.
        etag: request field that the `If-Match` header is.
        mask: request field that is filled with the names in the body, when the query has none.
        status: HTTP status of success.
        event: name of each server-sent event of a stream.
        resume: (field of a message that says how far the stream is, request field that takes it up after that).
        tag: heading in the document.
    """

    verb: str
    path: str
    call: str
    bind: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    etag: str = ""
    mask: str = ""
    status: int = 200
    event: str = ""
    resume: tuple[str, str] = ("", "")
    tag: str

    @property
    def given(self) -> frozenset[str]:
        """Top-level request fields that do not come from the query."""
        return frozenset(path.split(".")[0] for path in (*self.bind, self.body, self.etag) if path)
