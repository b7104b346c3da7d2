"""Which samples, in which order, how augmented, decoded where."""
