"""Ways to divide training over devices that Lightning does not have."""
