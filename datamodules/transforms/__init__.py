"""Training transforms, by the name a recipe gives them."""
