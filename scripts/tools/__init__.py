"""Tooling behind `scripts/*.py`: models, data and oracles. Glue only, never part of the product."""
