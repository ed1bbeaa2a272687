"""Slices on their way in: decoded, laid along an axis, and through windows while more of them come."""
