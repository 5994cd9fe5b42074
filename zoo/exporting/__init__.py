"""Trained models out of the zoo, with proof that they compute the same."""
