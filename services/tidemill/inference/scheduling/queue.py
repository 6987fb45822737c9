"""Calls that wait for a batch: by priority level, and within it by what they can share a batch with.

Times are nanoseconds by `time.monotonic_ns()`. Nothing here is safe to use from several threads at a time.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from tidemill.errors import DeadlineExceeded, Exhausted, TidemillError, Unavailable
from tidemill.inference.calls import Call, Receive
from tidemill.inference.configuration import DynamicBatching, QueuePolicy, TimeoutAction

BOUND = 1024
"""Most calls in a queue whose policy names no size."""
_RETRY_AFTER = 0.2


@dataclass(slots=True, eq=False)
class Entry:
    """A call that waits.

    Args:
        call: which.
        receive: takes its reply.
        form: what its inputs look like: calls of one form can share a batch.
        level: its priority, 1 being the most urgent; 0 in queues that have only one level.
        order: its place among all that came.
        limit: when it is refused; None = never.
        policed: whether its policy set the limit, rather than its caller.
        late: when it has to stand behind those that have not waited for so long; None = never.
    """

    call: Call
    receive: Receive
    form: Hashable
    level: int
    order: int = 0
    limit: int | None = None
    policed: bool = False
    late: int | None = None

    def refusal(self) -> TidemillError:
        """Why it is refused at its limit, or when its caller has gone."""
        if self.policed:
            return Unavailable("Request timeout expired", reason="QUEUE_TIMEOUT")
        return DeadlineExceeded("the request's time was over before the model ran", reason="EXPIRED")


class Lane:
    """Entries in the order in which they came, those of each form for themselves."""

    def __init__(self) -> None:
        self._forms: dict[Hashable, deque[Entry]] = {}

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __iter__(self) -> Iterator[Entry]:
        for entries in self._forms.values():
            yield from entries

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        entries = self._forms.get(entry.form)
        if entries is None:
            entries = self._forms[entry.form] = deque()
        entries.append(entry)

    def remove(self, entry: Entry) -> bool:
        """Take an entry out; False when it is not here."""
        entries = self._forms.get(entry.form)
        if entries is None or entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._forms[entry.form]
        return True

    def forms(self) -> list[Hashable]:
        """The forms, that of the oldest entry first."""
        if len(self._forms) == 1:
            return list(self._forms)
        return sorted(self._forms, key=lambda form: self._forms[form][0].order)

    def of(self, form: Hashable) -> tuple[Entry, ...] | deque[Entry]:
        """The entries of a form."""
        return self._forms.get(form, ())


class Level:
    """One priority level: those in time, and those that have waited for too long and may still run."""

    def __init__(self, policy: QueuePolicy, bound: int) -> None:
        self.policy = policy
        self.size = 0
        self.lanes = (Lane(), Lane())
        self._bound = policy.size or bound

    def check(self) -> None:
        """Return when there is room. Raises Unavailable (the owner's limit) or Exhausted (the server's)."""
        if self.size < self._bound:
            return
        if self.policy.size:
            raise Unavailable("Exceeds maximum queue size", reason="QUEUE_FULL", retry_after=_RETRY_AFTER)
        raise Exhausted(
            f"Exceeds maximum queue size: {self._bound} requests wait already; try again later",
            reason="QUEUE_FULL",
            retry_after=_RETRY_AFTER,
        )

    def limit(self, entry: Entry) -> None:
        """Set how long an entry may wait."""
        call, policy = entry.call, self.policy
        if call.expires is not None:
            entry.limit = int(call.expires * 1e9)
        longest = policy.timeout
        if policy.allow_override and call.patience > 0 and not 0 < longest <= call.patience:
            longest = call.patience
        if not longest:
            return
        over = call.arrived + int(longest * 1e9)
        if policy.action is TimeoutAction.DELAY:
            entry.late = over
        elif entry.limit is None or over < entry.limit:
            entry.limit, entry.policed = over, True

    def demote(self, now: int) -> None:
        """Put those behind the others that have waited for too long."""
        if self.policy.action is not TimeoutAction.DELAY:
            return
        fresh, late = self.lanes
        for entry in [entry for entry in fresh if entry.late is not None and entry.late <= now]:
            fresh.remove(entry)
            late.add(entry)


class Queue:
    """All that waits for one version.

    Args:
        dynamic: levels and policies.
        bound: most calls in a queue whose policy names no size.
    """

    def __init__(self, dynamic: DynamicBatching, bound: int = BOUND) -> None:
        self._default = dynamic.default_level or max((dynamic.levels + 1) // 2, 1)
        self._levels = [
            Level(dynamic.policies.get(level, dynamic.policy), bound) for level in range(1, max(dynamic.levels, 1) + 1)
        ]
        self.rows = 0
        """Rows of all that wait."""
        self._order = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def level(self, priority: int) -> int:
        """The level of a request that names this one; levels that there are not mean the default."""
        if len(self._levels) == 1:
            return 1
        return priority if 1 <= priority <= len(self._levels) else self._default

    def add(self, entry: Entry) -> None:
        """Append an entry.

        Raises:
            Unavailable: the queue is as long as the model's owner allows.
            Exhausted: it is as long as the server allows.
        """
        level = self._levels[entry.level - 1]
        level.check()
        level.limit(entry)
        self._order += 1
        entry.order = self._order
        level.lanes[0].add(entry)
        level.size += 1
        self._size += 1
        self.rows += entry.call.rows

    def remove(self, entry: Entry) -> bool:
        """Take an entry out; False when it waits no more."""
        level = self._levels[entry.level - 1]
        if not any(lane.remove(entry) for lane in level.lanes):
            return False
        level.size -= 1
        self._size -= 1
        self.rows -= entry.call.rows
        return True

    def first(self, now: int) -> Lane | None:
        """The lane whose turn it is; None when nothing waits."""
        for level in self._levels:
            if level.size:
                level.demote(now)
                return next(filter(None, level.lanes))
        return None

    def of(self, form: Hashable) -> Iterator[Entry]:
        """The entries of a form, the most urgent first."""
        for level in self._levels:
            if level.size:
                for lane in level.lanes:
                    yield from lane.of(form)

    def over(self, now: int) -> list[Entry]:
        """Take out the entries that are at their limit."""
        found = [entry for entry in self if entry.limit is not None and entry.limit <= now]
        for entry in found:
            self.remove(entry)
        return found

    def __iter__(self) -> Iterator[Entry]:
        for level in self._levels:
            for lane in level.lanes:
                yield from lane
