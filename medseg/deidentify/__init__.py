"""Results and copies of images without who they are of: PS3.15 Annex E (docs/deidentification.md)."""
