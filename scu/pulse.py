"""A pulse test: lambda is moved up and down for a while, and S must answer.

In closed loop lambda follows S, so that a trace alone cannot prove that S follows lambda. Here the
controller pauses, ln lambda goes to +0.3, -0.3, +0.3, -0.3 around where it was, and ln ParamBPT,
which has no sampling noise of its own, must be lower after each high half than after the low ones
beside it (plant.pulse_result). The test certifies that the gain is negative; it costs a few dozen
steps a little off the set point.
"""

import math

from scu.control import ControlSettings
from scu.monitor import BAND, Judgment
from scu.plant import PULSE_HALVES, PULSE_LEAST_WINDOWS

HEIGHT = 0.3
"""Of the pulse, in ln lambda."""
MOST_WINDOWS = 10
"""Of one half."""


class PulseTest:
    """The test within a run: gives lambda for each window, the controller's or its own."""

    def __init__(self, settings: ControlSettings, *, wanted: bool) -> None:
        self._settings = settings
        self._wanted = wanted
        self._levels: list[float] = []
        self.state = "S has not come near S*" if wanted else "not asked for"
        """How far it came, in words."""

    def ends_window(self) -> bool:
        """Whether the window that ends now was one of the test's."""
        if not self._levels:
            return False
        self._levels.pop(0)
        self.state = "cut off" if self._levels else "done"
        return True

    def next_lambda(self, lam: float, judgment: Judgment | None, *, held: str) -> float:
        """For the coming window. The test starts once S has been judged to be near S*."""
        if held == "cooldown":
            self._wanted, self._levels = False, []
        near = judgment and abs(judgment.statistics.get("mean_error", math.inf)) <= BAND
        if self._wanted and near and not held:
            assert judgment is not None
            self._wanted = False
            tau_steps = judgment.statistics.get("tau_steps", math.inf)
            self._levels = levels(lam, self._settings, tau_steps)
        return self._levels[0] if self._levels else lam


def levels(lam: float, settings: ControlSettings, tau_steps: float) -> list[float]:
    """Lambda for each window of the test: halves of one time constant, inside the bounds."""
    windows = MOST_WINDOWS
    if math.isfinite(tau_steps):
        windows = math.ceil(tau_steps / settings.control_interval)
        windows = min(max(windows, PULSE_LEAST_WINDOWS), MOST_WINDOWS)
    low, high = math.log(settings.lambda_min), math.log(settings.lambda_max)
    height = min(HEIGHT, 0.5 * (high - low))
    middle = min(max(math.log(lam), low + height), high - height)
    found: list[float] = []
    for half in range(PULSE_HALVES):
        found += [math.exp(middle + (height if half % 2 == 0 else -height))] * windows
    return found
