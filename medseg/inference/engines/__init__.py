"""What computes the windows: back-ends behind one call, the race that selects one, and the cache (docs/engines.md)."""
