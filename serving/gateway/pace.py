"""How fast the streams of one key may go: Envoy counts calls, and a stream is one call with any number of images.

A stream that is too fast is just not read any further for a moment, as everywhere here: none of its images is refused.
Single requests were counted by Envoy already; they only take their part of what the streams of the same key may.
"""

import time

MOST_NAMES = 10_000  # of keys remembered; who made up more would be forgotten again
_MOST_BEHIND = 1.0  # second that single requests can put the streams of their key behind


class Pace:
    """`rate` images a second for each name, of which `burst` may have been saved up. Nobody without a name is held."""

    def __init__(self, rate: float, burst: float) -> None:
        self._each, self._saved = 1 / rate, burst / rate  # seconds
        self._earned: dict[str, float] = {}  # when everything that was taken has been earned again, by name

    def take(self, name: str, *, single: bool = False) -> float:
        """Count an image; returns the seconds until it may be worked on, which a `single` request does not wait for."""
        if not name:
            return 0.0
        now = time.monotonic()
        if len(self._earned) >= MOST_NAMES:
            self._earned = {each: earned for each, earned in self._earned.items() if earned > now}
        earned = max(now, self._earned.get(name, now)) + self._each
        if single:
            earned = min(earned, now + self._saved + _MOST_BEHIND)
        self._earned[name] = earned
        return max(0.0, earned - now - self._saved)

    def give_back(self, name: str) -> None:
        """What was counted last has not come."""
        if name in self._earned:
            self._earned[name] -= self._each
