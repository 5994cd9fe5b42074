"""One reader for each format. It turns a folder into a `Source` and reports bad annotations as faults."""
