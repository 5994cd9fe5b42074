"""Prediction in tiles: views of an image, and their detections as those of the image."""
