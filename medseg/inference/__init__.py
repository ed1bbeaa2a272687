"""From slices to label planes (`segment`): to the model's grid, through windows by an engine, back, and in pieces."""
