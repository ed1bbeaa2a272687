"""medseg: streaming segmentation of DICOM studies into DICOM-SEG."""

__version__ = "0.1.0"
