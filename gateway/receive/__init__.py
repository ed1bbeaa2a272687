"""What has come: the spool, and when a series is complete."""
