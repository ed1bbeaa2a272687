"""MONAI bundles: found, read without executing anything, their weights loaded; what they ask becomes a `Recipe`."""
