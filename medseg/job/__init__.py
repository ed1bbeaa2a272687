"""One study, from its series to its results: planned, followed while it arrives, run, and put where it belongs."""
