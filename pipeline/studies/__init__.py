"""Programs that measure the project itself; nothing imports them."""
