"""A look at parts of an image: a first pass finds where, and the bundle's network runs there alone."""
