"""What is done with a series: jobs under leases, results frozen in the spool."""
