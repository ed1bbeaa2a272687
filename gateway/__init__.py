"""The gateway: DICOM in, segmentation by medseg, DICOM out; medseg does not know it.

What a program needs of it can be imported from here (docs/python.md); each name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["NoAssociation", "Sending", "Sent", "send"]

if TYPE_CHECKING:
    from gateway.dimse.scu import NoAssociation
    from gateway.dimse.sending import Sending, Sent, send
else:
    _HOMES = {
        "NoAssociation": "gateway.dimse.scu",
        "Sending": "gateway.dimse.sending",
        "Sent": "gateway.dimse.sending",
        "send": "gateway.dimse.sending",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:  # so that `from gateway import retry` goes on to the module
            raise AttributeError(f"module 'gateway' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
