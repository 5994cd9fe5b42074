"""The `zoo` command: Typer outside, LightningCLI inside."""
