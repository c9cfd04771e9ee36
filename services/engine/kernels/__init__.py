"""Our CPU operators in C++: paged attention and matrix products in which no row depends on another."""
