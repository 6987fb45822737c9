"""Page sizes and page tokens of every List method."""

import base64
import binascii
import hashlib
import json

from tidemill.errors import invalid

DEFAULT = 100
LARGEST = 1000


def size(page_size: int) -> int:
    """The number of items to return: 0 means `DEFAULT`, and no more than `LARGEST` are given.

    Raises:
        Invalid: for a negative number.
    """
    if page_size < 0:
        raise invalid("page_size", "must not be negative")
    return min(page_size, LARGEST) or DEFAULT


def token(position: str, *conditions: str) -> str:
    """The token that continues after `position` of a list made under `conditions` (parent, filter)."""
    return base64.urlsafe_b64encode(json.dumps([position, _digest(conditions)]).encode()).decode()


def position(page_token: str, *conditions: str) -> str:
    """The position that `token` was made of; "" for the first page.

    Raises:
        Invalid: the token is not one of ours, or of a list under other conditions.
    """
    if not page_token:
        return ""
    try:
        found, digest = json.loads(base64.urlsafe_b64decode(page_token.encode("ascii")))
    except (ValueError, binascii.Error, TypeError) as error:
        raise invalid("page_token", "is not a token of this service") from error
    if not isinstance(found, str) or digest != _digest(conditions):
        raise invalid("page_token", "belongs to a list with another parent or filter")
    return found


def _digest(conditions: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]
