"""MONAI bundles: loaded without executing anything, turned into a recipe."""
