"""What label planes hold: pieces, cleaned and measured as planes pass."""
