"""From what a design costs and a cluster to a plan: where each block runs, in which order, and what
that takes in memory and time."""
