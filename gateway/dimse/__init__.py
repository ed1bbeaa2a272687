"""DICOM on the wire, by pynetdicom and around it: the SCP, the SCU, and the one table of what is mended inside it."""
