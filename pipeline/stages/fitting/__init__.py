"""Layers fitted without gradients: least squares on what they are given and answer, batch norms estimated anew."""
