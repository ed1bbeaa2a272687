"""What people are shown of the ledger: studies, totals, next steps, in words."""
