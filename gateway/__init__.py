"""The gateway: DICOM in, segmentation by medseg, DICOM out; medseg does not know it."""
