"""Which rules name a bundle of several channels: their series are decided upon together, study by study."""

from __future__ import annotations

import time

from gateway.settings.model import Rule
from medseg.bundle.catalog import find_folder
from medseg.bundle.several import needs_several
from medseg.errors import BundleError

AGAIN_S = 10.0  # before a bundle that cannot be read is looked at again


class SeveralChannels:
    """Asks each bundle once, by its descriptions alone: nobody who asks needs torch."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._unread_s: dict[str, float] = {}

    def parted(self, rule: Rule | None) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        """A rule once for each of its bundles of one channel, and once for each of several."""
        each = () if rule is None else rule.each
        return tuple(one for one in each if not self.of(one)), tuple(one for one in each if self.of(one))

    def of(self, rule: Rule) -> bool:
        """Whether a rule's bundle, the first of a list, is of several channels; one that cannot be read has none, and
        fails as a job does."""
        name = rule.bundle
        if name is None:
            return False
        if name not in self._known and time.monotonic() - self._unread_s.get(name, -AGAIN_S) >= AGAIN_S:
            try:
                self._known[name] = needs_several(find_folder(name))
            except (BundleError, OSError):
                self._unread_s[name] = time.monotonic()
        return self._known.get(name, False)
