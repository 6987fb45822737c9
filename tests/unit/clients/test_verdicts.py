"""The first shard's word on whose gradients count, and the order in which shards get a push."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from tidemill.clients.fanout import Calls, Fanout
from tidemill.clients.verdicts import Order, Verdicts


class Shards:
    """Notes what each shard was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, tuple[int, ...]]] = []

    def __call__(self, shard: int, step: int, ranks: Sequence[int], calls: Calls) -> None:
        self.told.append((shard, step, tuple(ranks)))


class TestVerdicts:
    def test_all_other_shards_hear_what_the_first_one_has_decided(self) -> None:
        shards = Shards()
        Verdicts(3, shards).learn(7, [0, 2], Calls())
        assert shards.told == [(1, 7, (0, 2)), (2, 7, (0, 2))]

    def test_there_is_nothing_to_tell_where_nobody_is_dropped_or_there_is_one_shard(self) -> None:
        shards = Shards()
        Verdicts(3, shards).learn(7, [], Calls())
        Verdicts(1, shards).learn(7, [0, 2], Calls())
        assert shards.told == []

    def test_only_the_last_one_is_repeated_and_not_to_who_has_said_it(self) -> None:
        shards = Shards()
        verdicts = Verdicts(2, shards)
        verdicts.repeat(1, -1, Calls())
        verdicts.repeat(1, 0, Calls())
        for step in (4, 5, 4):
            verdicts.learn(step, [0, 1], Calls())
        shards.told.clear()
        for shard in (0, 1):
            for step in (4, 5, 6):
                verdicts.repeat(shard, step, Calls())
        assert shards.told == [(1, 5, (0, 1))]


class TestOrder:
    def test_the_first_shard_gets_the_end_when_all_others_have_it(self) -> None:
        order, ended = Order(3), threading.Event()
        sent: list[tuple[int, bytes]] = []

        def push(shard: int, calls: Calls) -> None:
            if shard == 2:
                assert ended.wait(30)
            for message in order.of(shard, iter([b"header", b"block"])):
                sent.append((shard, message))
                if sent.count((0, b"header")) and sent.count((1, b"block")):
                    ended.set()

        Fanout(3, 0.0, "push").run(order.around(push))
        assert sent[-1] == (0, b"block")
        assert sorted(sent) == [(shard, message) for shard in range(3) for message in (b"block", b"header")]

    def test_a_shard_that_fails_holds_up_nobody(self) -> None:
        order = Order(2)
        sent: list[bytes] = []

        def push(shard: int, calls: Calls) -> None:
            if shard == 1:
                raise ZeroDivisionError
            sent.extend(order.of(shard, iter([b"header"])))

        fanout = Fanout(2, 0.0, "push")
        with pytest.raises(ZeroDivisionError):
            fanout.run(order.around(push))
        assert sent == [b"header"]

    def test_one_shard_waits_for_nobody(self) -> None:
        def messages() -> Iterator[bytes]:
            yield b"header"

        assert list(Order(1).of(0, messages())) == [b"header"]
