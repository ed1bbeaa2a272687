"""When a series is complete: events go in, a decision comes out."""
