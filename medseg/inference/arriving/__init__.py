"""Slices on their way in, and through a network's windows while more of them come."""
