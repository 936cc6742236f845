"""The commands, one file each: what was asked, what is printed, and the exit status."""
