"""What runs the graphs of a build, behind one interface."""
