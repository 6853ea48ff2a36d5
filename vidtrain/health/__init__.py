"""What may be wrong with a machine, or between machines: looked at, measured, and a remedy."""
