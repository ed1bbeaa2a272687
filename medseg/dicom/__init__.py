"""Images as they come: instances, series, geometry, pixels."""
