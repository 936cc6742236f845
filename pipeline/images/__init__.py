"""What networks and files are fed: sizes, normalisation, and preprocessing as part of a network."""
