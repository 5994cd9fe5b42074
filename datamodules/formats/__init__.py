"""Readers, one a format. Each turns a folder into a `Source`; none of them raises on bad annotations."""
