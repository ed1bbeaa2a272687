"""When a series is complete: rows of the ledger become events, events a state, the state and the clock a decision."""
