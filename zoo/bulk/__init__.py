"""Predicting many images: what they are, what is kept of them at every moment, and the files in the end."""
