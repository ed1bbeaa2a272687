"""What is to be done: which bundle for which series, and what after a failure."""
