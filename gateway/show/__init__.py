"""What people are shown of the ledger: studies, totals, troubles and next steps, in words."""
