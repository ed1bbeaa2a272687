"""What an administrator decides: the groups of `medseg.toml`, their allowed values, how they are read and reloaded."""
