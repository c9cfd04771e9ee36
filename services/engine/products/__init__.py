"""Matrix products in which no row depends on another."""
