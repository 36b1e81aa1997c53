"""The `mrm` command, one module per command."""
