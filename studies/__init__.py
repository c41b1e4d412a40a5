"""Commands that measure the method itself. They use every room; no room imports them."""
