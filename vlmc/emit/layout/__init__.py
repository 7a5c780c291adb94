"""Builds under the names that other people's clients expect."""
