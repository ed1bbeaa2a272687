"""One study, from its series to its results: what the command line, a cohort and the gateway's worker call."""
