"""What is done with a series: the worker and its lease, results frozen in the spool, and what each was made of."""
