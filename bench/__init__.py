"""Measurements beside peers. Each module is a command: `python -m bench.quality --help`."""
