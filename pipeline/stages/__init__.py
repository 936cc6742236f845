"""What changes a network; the folder is the list of stages, and no stage knows another."""
