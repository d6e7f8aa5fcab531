"""The verifiers; each is read in its own file."""
