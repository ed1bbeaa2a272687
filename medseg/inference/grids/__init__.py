"""Between the source's grid and the model's: there (prepare) and back (restore)."""
