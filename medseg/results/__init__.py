"""Label planes become results: DICOM-SEG, report, NIfTI, picture, JSON; and the second reader that verifies a SEG."""
