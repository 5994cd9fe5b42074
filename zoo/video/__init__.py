"""Videos and cameras: their frames, and videos with what was found in them, by PyAV (the extra `video`)."""
