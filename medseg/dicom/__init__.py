"""Images as they come: sources, headers, series, the volumes that slices form, pixels; and phantoms to measure."""
