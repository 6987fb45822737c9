"""Checks of how a configuration has batches made."""

from collections.abc import Sequence

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.inference.modelconfig.tensors import refuse

MOST_MICROSECONDS = 10**12
MOST_LEVELS = 1024


def check_dynamic(batching: pb.ModelDynamicBatching, largest: int) -> None:
    """Return when batches can be made so. Raises Invalid."""
    check_preferred(batching.preferred_batch_size, largest, "dynamic_batching")
    check_delay(batching.max_queue_delay_microseconds, "dynamic_batching")
    levels = batching.priority_levels
    if levels > MOST_LEVELS:
        raise refuse(f"dynamic_batching.priority_levels must be at most {MOST_LEVELS}")
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise refuse(f"dynamic_batching.default_priority_level must be in [1, {levels}]")
    if not levels and (batching.default_priority_level or batching.priority_queue_policy):
        raise refuse("dynamic_batching names priorities, but has no priority_levels")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise refuse(f"dynamic_batching.priority_queue_policy is for level {level}, of {levels}")
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        check_delay(policy.default_timeout_microseconds, "queue_policy.default_timeout_microseconds")
        if policy.timeout_action not in pb.ModelQueuePolicy.TimeoutAction.values():
            raise refuse("queue_policy has an unknown timeout_action")


def check_preferred(sizes: Sequence[int], largest: int, what: str) -> None:
    """Return when these can be preferred sizes of batches of at most `largest` rows. Raises Invalid."""
    if len(sizes) > 256:
        raise refuse(f"{what} has more than 256 preferred_batch_size")
    for size in sizes:
        if size < 1:
            raise refuse(f"{what}: preferred_batch_size must be above 0")
        if size > max(largest, 1):
            raise refuse(f"{what}: preferred_batch_size {size} is above max_batch_size {largest}")


def check_delay(microseconds: int, what: str) -> None:
    """Return when this is a time that somebody may wait. Raises Invalid."""
    if microseconds > MOST_MICROSECONDS:
        raise refuse(f"{what}: {microseconds} microseconds are more than {MOST_MICROSECONDS}")
