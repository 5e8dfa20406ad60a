"""The version: in every trace's provenance, in cards, and of the distribution."""

__version__ = "0.1.0"
