"""What the gateway adds to the `medseg` command: its commands, and its part of `medseg doctor` and `medseg demo`."""
