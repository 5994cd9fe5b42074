"""Official numbers and the code that compares ours with them."""
