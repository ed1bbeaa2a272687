"""The sliding window: where windows lie, run, and are stitched."""
