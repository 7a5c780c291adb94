"""What runs a plan: the modules that become parallel/train.py of a build."""
