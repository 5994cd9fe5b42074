"""Images cut into tiles, for training and evaluation: which tiles, and what of their objects."""
