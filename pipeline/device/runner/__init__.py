"""What a bundle runs on the device: standard library, numpy and one runtime, nothing of the rest of the project.

It must work on Python 3.9, which boards still have, and inside a zip; so its modules import each other relatively.
"""

RUNNER = "1"
"""Version of what it measures and of the result it writes."""

PASSED, FAILED, WRONG_REQUEST, MISSING_RUNTIME = 0, 1, 2, 3
"""Exit statuses."""
