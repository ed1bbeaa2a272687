"""From slices to label planes: windows, blending, restoring, quality."""
