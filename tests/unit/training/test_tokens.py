"""A token is known by its digest, until it is revoked."""

import pytest

from tidemill import errors
from tidemill.training.tokens import Tokens


def test_a_token_stands_for_who_was_given_it() -> None:
    tokens: Tokens[str] = Tokens()
    issued = {tokens.issue(f"worker {number}"): f"worker {number}" for number in range(100)}
    assert len(issued) == 100
    assert all(len(token) >= 43 for token in issued), "256 bits"
    assert {token: tokens.find(token) for token in issued} == issued
    assert not any(token in repr(vars(tokens)) for token in issued), "tokens themselves are not kept"
    gone, *others = issued
    tokens.revoke(gone)
    tokens.revoke(gone)
    assert {token: tokens.find(token) for token in others} == {token: issued[token] for token in others}
    for stranger in (gone, "", "x", others[0][:-1]):
        with pytest.raises(errors.Unauthenticated) as refused:
            tokens.find(stranger)
        assert refused.value.reason == "UNKNOWN_TOKEN"
