"""Folders and repositories of transformers: what they mean here, pulled, and pushed."""
