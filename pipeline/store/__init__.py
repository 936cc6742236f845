"""Results under a key made of all that determines them."""
