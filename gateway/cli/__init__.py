"""The gateway's commands and its lines of `medseg doctor`."""
