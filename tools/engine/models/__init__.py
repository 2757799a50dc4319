"""Model files: snapshots of a run, its state, and opening any file that holds a network."""
