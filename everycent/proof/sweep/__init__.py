"""The crash sweep: every fault at every boundary of a flow, and what came of it."""
