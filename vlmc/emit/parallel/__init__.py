"""parallel/ of a build: what trains it on many devices."""
