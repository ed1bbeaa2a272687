"""What is kept and for how long: retention, purge, erasure in two commits, backup."""
