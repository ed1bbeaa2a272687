"""medseg: streaming segmentation of DICOM studies into DICOM-SEG."""

import os

__version__ = "0.1.0"

# torch multiplies by MKL, whose products may have other last bits at another address (a window in another batch, a
# slice that came later) unless it is told, before its first one.
os.environ.setdefault("MKL_CBWR", "AUTO")
