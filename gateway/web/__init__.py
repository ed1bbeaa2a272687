"""What people and monitoring see: health, metrics, and a page for every study."""
