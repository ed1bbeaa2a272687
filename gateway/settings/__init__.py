"""What an administrator decides: `medseg.toml`."""
