"""Results leave: sent until they are stored, asked after until they are confirmed."""
