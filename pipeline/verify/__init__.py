"""The proof that a file still works: gates, cards, golden images, and the comparison layer by layer."""
