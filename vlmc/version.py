"""The version, where every stage can read it without importing what is above it."""

__version__ = "0.1.0"
