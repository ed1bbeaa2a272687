"""DICOMweb (PS3.18) over what is here: QIDO-RS, WADO-RS and STOW-RS."""
