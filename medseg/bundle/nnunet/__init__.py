"""nnU-Net v2's trained-model folders, read as data: plans, labels, checkpoints; nothing in them is looked up or run."""
