"""The page that says why an AP is what it is, and the same numbers as JSON."""
