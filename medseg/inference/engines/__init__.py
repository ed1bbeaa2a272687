"""What computes the windows: back-ends behind one interface, and the race that chooses one (docs/engines.md)."""
