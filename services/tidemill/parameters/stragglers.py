"""Workers that are late in rounds: when a round closes all the same, and who makes it."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tidemill.errors import DeadlineExceeded, FailedPrecondition, invalid

POLICIES = ("wait", "drop", "fail")
MAX_SECONDS = 86_400.0
REASON = "STRAGGLERS"
"""Of the error of a group that has ended because workers were late."""
FIELD = "group.stragglers"
KEPT = 2
"""Rounds whose ranks are known: those of the versions that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """What becomes of workers that are late.

    Args:
        policy: one of `POLICIES`.
        most: for `drop`: most workers without which a round closes.
        after_seconds: since a round's first push: for `drop`, until which the missing are waited for all the same; for
            `fail`, after which it is too late.

    Raises:
        Invalid: when these do not go together.
    """

    policy: str = "wait"
    most: int = 0
    after_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise invalid(f"{FIELD}.policy", f"must be one of {', '.join(POLICIES)}, not {self.policy[:40]!r}")
        if self.most < 0 or (self.most > 0) != self.drops:
            raise invalid(f"{FIELD}.most", f"must be at least 1 to drop, else 0, not {self.most}")
        if not (math.isfinite(self.after_seconds) and 0 <= self.after_seconds <= MAX_SECONDS):
            raise invalid(f"{FIELD}.after_seconds", f"must be in [0, {MAX_SECONDS:g}], not {self.after_seconds}")
        if self.policy == "fail" and not self.after_seconds:
            raise invalid(f"{FIELD}.after_seconds", "must be more than 0 to fail")
        if self.policy == "wait" and self.after_seconds:
            raise invalid(f"{FIELD}.after_seconds", "is to drop or to fail")

    @property
    def drops(self) -> bool:
        """Whether rounds close without the slowest."""
        return self.policy == "drop"

    def check(self, *, workers: int, rounds: bool, arrival_order: bool, copies: bool, sparse: bool) -> None:
        """See that a group can have this policy.

        Raises:
            Invalid: it cannot.
        """
        if self.policy == "wait":
            return
        if not rounds:
            raise invalid(f"{FIELD}.policy", "is for rounds: otherwise nobody is late")
        if copies:
            raise invalid(f"{FIELD}.policy", "must be wait with copies: each would decide by itself")
        if self.drops and arrival_order:
            raise invalid(f"{FIELD}.policy", "cannot be drop in order of arrival: what was added up stays")
        if self.drops and sparse:
            raise invalid(f"{FIELD}.policy", "cannot be drop with sparse tensors")
        if self.most >= workers:
            raise invalid(f"{FIELD}.most", f"must be less than the {workers} workers, not {self.most}")


WAIT = Stragglers()
"""The others wait for them."""


class Roll:
    """Who has to be in the open round of one shard, and who was in those before. Its owner's lock guards it.

    To drop the slowest, one shard decides for all: the first. What it has decided is told to the others.

    Args:
        policy: of the group.
        workers: how many there are.
        decides: whether this shard does.
    """

    def __init__(self, policy: Stragglers, workers: int, *, decides: bool) -> None:
        self._policy = policy
        self._workers = workers
        self._decides = decides or not policy.drops
        self._begun: float | None = None
        self._told: tuple[int, ...] | None = None
        self._made: dict[int, tuple[int, ...]] = {}
        self._counted = [-1] * workers

    def came(self, now: float) -> None:
        """Somebody has pushed for the open round."""
        if self._begun is None:
            self._begun = now

    def chosen(self, arrived: Collection[int], now: float) -> tuple[int, ...]:
        """Who makes the open round, when that is to be closed now; else nobody.

        Args:
            arrived: who has pushed.
            now: monotonic time, in seconds.
        """
        if not self._decides:
            told = self._told
            return told if told is not None and all(rank in arrived for rank in told) else ()
        if len(arrived) == self._workers or (self._enough(arrived) and not self._left(now)):
            return tuple(sorted(arrived))
        return ()

    def patience(self, arrived: Collection[int], now: float) -> float | None:
        """Seconds after which the time alone may change something; None = it does not."""
        counts = self._enough(arrived) if self._policy.drops else self._policy.policy == "fail"
        return self._left(now) if counts and self._decides and self._begun is not None else None

    def overdue(self, arrived: Collection[int], now: float) -> tuple[int, ...]:
        """Who is missing so late that the group fails; nobody = it does not."""
        late = self._policy.policy == "fail" and self._begun is not None and not self._left(now)
        return self._missing(arrived) if late else ()

    def told(self, step: int, version: int, ranks: Sequence[int]) -> bool:
        """Somebody says who makes a round; whether that is news.

        Raises:
            FailedPrecondition: NO_VERDICT, this shard decides by itself; STEP_AHEAD; CONTRADICTION, it knows otherwise.
            Invalid: these cannot make a round.
        """
        if not self._policy.drops:
            raise FailedPrecondition("rounds of this group close with all workers", reason="NO_VERDICT")
        given = tuple(ranks)
        if list(given) != sorted({*given} & {*range(self._workers)}) or not self._enough(given):
            raise invalid("ranks", f"must be {self._workers - self._policy.most} ranks at least, with 0, ascending")
        if step > version:
            raise FailedPrecondition(f"step {step} is ahead of version {version}", reason="STEP_AHEAD")
        known = self._told if step == version else self._made.get(step)
        if known is not None and known != given:
            raise FailedPrecondition(
                f"step {step} is made of the gradients of {_named(known)}, not of {_named(given)}",
                reason="CONTRADICTION",
                metadata={"step": str(step), "ranks": _listed(known)},
            )
        if step == version and self._decides:
            raise FailedPrecondition("this shard decides by itself", reason="NO_VERDICT")
        if step < version or known is not None:
            return False
        self._told = given
        return True

    def closed(self, step: int, ranks: Sequence[int]) -> None:
        """The round of a step was closed with these."""
        self._begun = self._told = None
        self._made[step] = tuple(ranks)
        for old in [one for one in self._made if one <= step - KEPT]:
            del self._made[old]
        for rank in ranks:
            self._counted[rank] = step

    def made_of(self, step: int) -> tuple[int, ...]:
        """Who has made a round, where some may be dropped and that is still known."""
        return self._made.get(step, ()) if self._policy.drops else ()

    def missed(self, worker: int, step: int) -> bool:
        """Whether the round of a step, which was closed, does not count a worker's push."""
        if not self._policy.drops:
            return False
        made = self._made.get(step)
        return step > self._counted[worker] if made is None else worker not in made

    def waits_for(self, arrived: Collection[int], now: float) -> str:
        """What the open round waits for, in words."""
        missing = self._missing(arrived)
        if not missing or (self._told is not None and all(rank in arrived for rank in self._told)):
            return "its round must be applied"
        if not self._policy.drops:
            return f"{_named(missing)} must push"
        if not self._decides:
            if self._told is None:
                return "shard 0 must close its round"
            return f"{_named([rank for rank in self._told if rank not in arrived])} must push"
        if self._enough(arrived):
            return f"{_named(missing)} may push for {self._left(now):.3g} s more"
        more = self._workers - self._policy.most - len({*arrived, 0})
        if more <= 0:
            return f"{_named([0])} must push"
        others = f"{more} of {_named([rank for rank in missing if rank])}"
        return f"{others if 0 in arrived else f'{_named([0])} and {others}'} must push"

    def _enough(self, arrived: Collection[int]) -> bool:
        """Whether these can make a round, which rank 0 always must: it measures and exports, and skips no step."""
        return 0 in arrived and len(arrived) >= self._workers - self._policy.most

    def _left(self, now: float) -> float:
        """Seconds for which the open round stays open."""
        return 0.0 if self._begun is None else max(0.0, self._begun + self._policy.after_seconds - now)

    def _missing(self, arrived: Collection[int]) -> tuple[int, ...]:
        return tuple(rank for rank in range(self._workers) if rank not in arrived)


def overdue(group: str, step: int, missing: Sequence[int], policy: Stragglers) -> Callable[[], DeadlineExceeded]:
    """Makes the error of a group that has ended because these were late."""
    text = (
        f"{group} has failed: {_named(missing)} did not push for step {step} within {policy.after_seconds:g} s "
        "since the first worker did"
    )
    metadata = {"step": str(step), "ranks": _listed(missing)}
    return lambda: DeadlineExceeded(text, reason=REASON, metadata=metadata)


def _named(ranks: Sequence[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {_listed(ranks)}"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
