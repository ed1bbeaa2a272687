"""What may be asked of a series, as data: one language for rules, for what bundles expect, and for their channels."""
