"""On the device: a bundle of files that measures itself where it will run, carried there and its result taken in.

``bundle`` writes one executable file; ``runner`` is what runs in it, on numpy and one runtime; ``job`` carries it over a
``link`` and brings the result back; ``accept`` takes a result in with suspicion; ``fleet`` does so on many devices.
"""
