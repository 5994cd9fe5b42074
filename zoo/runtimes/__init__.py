"""Exported files as models: what computes a network where PyTorch does not."""
