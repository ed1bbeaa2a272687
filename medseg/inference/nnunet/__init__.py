"""nnU-Net's own way from a volume to its labels, step by step and rounding by rounding as nnU-Net takes it."""
