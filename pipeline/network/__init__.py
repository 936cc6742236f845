"""A network as data: built by name, changed by recorded surgery, captured as a graph, saved and rebuilt."""
