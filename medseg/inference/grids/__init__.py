"""Between the source's grid and the model's: there (prepare, with statistics of the whole) and back (restore)."""
