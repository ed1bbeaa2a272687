"""How many examples Hypothesis tries, and which."""

from __future__ import annotations

from hypothesis import settings

#: For tests of whole networks, of whose cases there is time for few: the same ones in every run.
SAME_IN_EVERY_RUN = settings(derandomize=True, deadline=None)
