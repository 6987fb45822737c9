"""A token is known by its digest, until it is revoked."""

import pytest

from tidemill import errors
from tidemill.training.tokens import Tokens, digest, fresh


def test_a_token_stands_for_who_was_given_it() -> None:
    tokens: Tokens[str] = Tokens()
    issued = {fresh(): f"worker {number}" for number in range(100)}
    for token, worker in issued.items():
        tokens.know(digest(token), worker)
    assert len(issued) == 100
    assert all(len(token) >= 43 for token in issued), "256 bits"
    assert {token: tokens.find(token) for token in issued} == issued
    assert not any(token in repr(vars(tokens)) for token in issued), "tokens themselves are not kept"
    gone, *others = issued
    tokens.revoke(digest(gone))
    tokens.revoke(digest(gone))
    assert {token: tokens.find(token) for token in others} == {token: issued[token] for token in others}
    for stranger in (gone, "", "x", others[0][:-1]):
        with pytest.raises(errors.Unauthenticated) as refused:
            tokens.find(stranger)
        assert refused.value.reason == "UNKNOWN_TOKEN"


def test_while_not_all_are_known_a_stranger_may_become_known() -> None:
    complete = False
    tokens: Tokens[str] = Tokens(lambda: complete)
    with pytest.raises(errors.Unavailable) as early:
        tokens.find("stranger")
    assert early.value.reason == "NOT_READY"
    tokens.know(digest("known"), "worker")
    assert tokens.find("known") == "worker"
    complete = True
    with pytest.raises(errors.Unauthenticated):
        tokens.find("stranger")
