"""The room of merging: one model made of several, in weight space."""
