"""The deployment pipeline: compress, quantize, export, and prove that the file still works."""
