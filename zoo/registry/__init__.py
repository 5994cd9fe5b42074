"""Published weights: safetensors and a manifest, versions and aliases, never a pickle."""
