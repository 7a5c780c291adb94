"""From a spec's target to a plan: what is asked, what is found, plan.yaml out and in."""
