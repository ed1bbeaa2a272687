"""What is kept and for how long: retention, purge, backup."""
