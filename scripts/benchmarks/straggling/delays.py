"""How long each step of each worker takes: the same for every mode."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delays:
    """Steps of a fixed length, of which some are longer."""

    step: float
    """Seconds of every step."""
    extra: float
    """Seconds that a straggling step takes beyond."""
    probability: float
    """Of a step to be one."""
    seed: int

    def of(self, worker: int, step: int) -> float:
        """Seconds of a worker's step: always the same ones."""
        late = random.Random(f"{self.seed} {worker} {step}").random() < self.probability
        return self.step + self.extra * late
