"""Reports of trainings, of models on data, and of two models."""
