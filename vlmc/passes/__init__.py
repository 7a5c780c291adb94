"""Transforms of captured graphs, each named, verified and tested."""
