"""What has come, as it was sent: the spool, who an instance is, and other bytes of the same image."""
