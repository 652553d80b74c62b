"""Top-1 agreement: how often two runs of one text would choose the same next token.

Teacher-forced over the same windows, so one different choice does not change what follows, as it
would in free generation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flexq_ft.errors import ConfigError


def top1_agreement(ours: npt.NDArray[np.int64], baseline: npt.NDArray[np.int64]) -> float:
    """Share of positions where the likeliest token is the same. Both [W, window - 1].

    Raises ConfigError if the two were not taken over the same windows.
    """
    if ours.shape != baseline.shape or ours.size == 0:
        raise ConfigError(
            f"cannot compare choices over {ours.shape} and {baseline.shape} positions.",
            cause="the two runs did not score the same windows.",
            hint="the same text, protocol, window and max_windows for both",
        )
    return float(np.mean(ours == baseline))
